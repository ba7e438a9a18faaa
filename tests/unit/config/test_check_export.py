"""Rules about what is exported."""

import pytest

from trainer.config.check import find_problems
from trainer.config.store import compose_config

COMMON = ["model=tiny", "data=text", "data.sources.corpus.path=x.txt", "train.max_steps=1"]


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        ("export.alpha=1.5", ["export.alpha"]),
        ("export.dtype=float16", ["export.dtype"]),
        ("export.gguf=f16 export.interpolate=0:1:0.5", ["export.gguf"]),
        ("export.weights=[1.0]", ["export.weights"]),
        ("export.adapters=[a] export.output_dir=x", ["export.adapters"]),
        ("export.adapters=[a,b]", ["export.output_dir"]),
        ("export.adapters=[a,b] export.output_dir=x export.weights=[1.0]", ["export.weights"]),
        ("export.adapters=[a,b] export.output_dir=x export.weights=[1.0,0.0]", ["export.weights"]),
        ("export.adapters=[a,b] export.output_dir=x export.weights=[1.0,nan]", ["export.weights"]),
        ("export.adapters=[a,b] export.output_dir=x export.density=0", ["export.density"]),
        ("export.adapters=[a,b] export.output_dir=x export.alpha=0.5", ["export.alpha"]),
        ("export.adapters=[a,b] export.output_dir=x export.interpolate=0:1:0.5", ["export.interpolate"]),
        ("export.adapters=[a,b] export.output_dir=x export.weights=[1.0,-0.5]", []),
    ],
)
def test_a_broken_rule_names_its_key(words, keys):
    problems = list(find_problems(compose_config([*COMMON, *words.split()])))
    assert [problem.key for problem in problems] == keys
