"""What refers to a key may stand for a value and for nothing larger."""

import dataclasses

import pytest

from trainer.config.kinds import kind_problems
from trainer.config.schema import RunConfig
from trainer.config.store import compose_config
from trainer.errors import ConfigError


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "cluster.watch=a${name}",
            "`cluster.watch` must be a mapping, but is 'arun' instead. Set the keys below",
        ),
        ("gate.sets=${name}", "`gate.sets` must be a mapping, but is 'run' instead."),
        (
            "tune.target=${gate.sets}",
            "`tune.target` must be a list, but is another section or list instead. Set",
        ),
    ],
)
def test_a_reference_in_the_place_of_a_section_is_a_sentence(word, said):
    with pytest.raises(ConfigError, match=said.replace("[", r"\[")):
        compose_config([word])


def test_every_section_is_looked_at():
    config = RunConfig()
    assert list(kind_problems(config)) == []
    sections = [
        f.name for f in dataclasses.fields(config) if dataclasses.is_dataclass(getattr(config, f.name))
    ]
    assert len(sections) > 8
    for name in sections:
        (found,) = kind_problems(dataclasses.replace(config, **{name: 3}))
        assert found.sentence == f"`{name}` must be a mapping, but is 3 instead. Set the keys below {name}."


@pytest.mark.parametrize("word", ["log.trackers=[[wandb]]", "tune.target=[q_proj,{a: 1}]"])
def test_a_list_within_a_list_of_values_is_a_sentence(word):
    """`[[wandb]]` was a traceback."""
    key = word.partition("=")[0]
    with pytest.raises(ConfigError, match=f"`{key}` must be a list of values, but is one of lists"):
        compose_config(["model=tiny", "tune=lora", word])
