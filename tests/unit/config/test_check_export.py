"""Rules about what is exported."""

import pytest

from trainer.config.check import find_problems
from trainer.config.check_export import export_problems
from trainer.config.schema import RunConfig
from trainer.config.store import compose_config
from trainer.config.train import ExportConfig

COMMON = ["model=tiny", "data=text", "data.sources.corpus.path=x.txt", "train.max_steps=1"]


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        ("export.alpha=1.5", ["export.alpha"]),
        ("export.dtype=float16", ["export.dtype"]),
        ("export.average=0", ["export.average"]),
        ("export.average=3", []),
        ("export.average=3 tune=lora", ["export.average"]),
        ("export.average=3 tune=lora export.merge=true", []),
        ("export.average=3 tune=lora export.interpolate=0:1:0.5", []),
        ("export.average=3 tune=prompt", ["export.average"]),
        ("export.average=2 export.adapters=[a,b] export.output_dir=x", ["export.average"]),
        ("export.gguf=f16 export.interpolate=0:1:0.5", ["export.gguf"]),
        ("export.text_only=true", []),
        ("export.text_only=true tune=lora", ["export.text_only"]),
        ("export.merge=true", ["export.merge"]),
        ("export.text_only=true tune=lora export.merge=true", []),
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


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"hub": "my-org/my-model"}, []),
        ({"hub": "my-org/my.model_2", "hub_revision": "trials/1", "hub_private": False}, []),
        ({"hub_base": "my-org/base"}, []),
        ({"hub": "my-model"}, ["export.hub"]),
        ({"hub": "my-org/my-model/main"}, ["export.hub"]),
        ({"hub": "https://huggingface.co/my-org/my-model"}, ["export.hub"]),
        ({"hub": "my-org/my--model"}, ["export.hub"]),
        ({"hub": "my-org/my-model.git"}, ["export.hub"]),
        ({"hub": "my org/m\u00fcller"}, ["export.hub"]),
        ({"hub": ""}, ["export.hub"]),
        ({"hub": "a/b", "hub_revision": "two words"}, ["export.hub_revision"]),
        ({"hub": "a/b", "hub_base": "./base"}, ["export.hub_base"]),
        ({"hub_revision": "trial"}, ["export.hub_revision"]),
        ({"hub": "a/b", "verify": False}, ["export.verify"]),
        ({"hub": "a/b", "interpolate": "0:1:0.5"}, ["export.hub"]),
    ],
)
def test_a_broken_rule_of_the_hub_names_its_key(changes, keys):
    config = RunConfig(export=ExportConfig(**changes))
    assert [problem.key for problem in export_problems(config)] == keys


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        ("model.path=/data/base tune=lora", ["export.hub_base"]),
        ("model.kind=tiny tune=lora", ["export.hub_base"]),
        ("model.path=/data/base tune=lora export.hub_base=my-org/base", []),
        ("model.path=/data/base tune=lora export.merge=true", []),
        ("model.path=/data/base tune=lora export.alpha=0.5", []),
        ("model.path=/data/base", []),
        ("model.path=my-org/base tune=lora", []),
        ("model.path=/hf/hub/models--my-org--base/snapshots/0a1b tune=lora", []),
        ("model.kind=embedded tune=lora", []),
    ],
)
def test_an_adapter_that_is_pushed_has_a_base_that_others_find(words, keys):
    common = ["data=text", "data.sources.corpus.path=x.txt", "train.max_steps=1", "export.hub=my-org/mine"]
    kind = [] if "model.kind" in words else ["model.kind=pretrained"]
    problems = list(find_problems(compose_config([*common, *kind, *words.split()])))
    assert [problem.key for problem in problems] == keys
    folder = words.split()[0].rpartition("/")[2]
    said = f"`export.hub_base` must be given where an adapter is pushed whose base is a folder ({folder})"
    assert not keys or "tiny" in words or problems[0].sentence.startswith(said)
