"""No number of a configuration is infinite or NaN, whatever its own rule compares it with."""

import math

import pytest

from tests.helpers.tiny import tiny_config
from trainer.config.check import find_problems
from trainer.config.check_numbers import MOST_SEED, number_problems
from trainer.config.describe import fields
from trainer.config.schema import RunConfig
from trainer.config.tune import TuneMethod

FLOATS = [key for key, field in fields().items() if field.hint in (float, float | None) and "NAME" not in key]


def with_value(config, key, value):
    *sections, name = key.split(".")
    owner = config
    for section in sections:
        owner = getattr(owner, section)
    setattr(owner, name, value)
    return config


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_every_float_of_the_schema_must_be_finite(tmp_path, value):
    assert len(FLOATS) > 40
    for key in FLOATS:
        found = [
            one for one in find_problems(with_value(tiny_config(tmp_path), key, value)) if one.key == key
        ]
        assert len(found) == 1, (key, found)
        assert "must be a finite number" in found[0].sentence, "a fix that is worked out of it proposes it"


def test_numbers_in_lists_and_mappings_are_looked_at():
    config = RunConfig()
    config.zero.extra = {"a": [1.0, {"b": math.inf}]}
    config.optim.betas = [0.9, math.nan]
    assert sorted(one.key for one in number_problems(config)) == ["optim.betas", "zero.extra.a.b"]


@pytest.mark.parametrize("seed", [-1, MOST_SEED + 1])
def test_a_seed_is_one_that_every_generator_takes(tmp_path, seed):
    config = tiny_config(tmp_path)
    config.seed = seed
    (found,) = find_problems(config)
    assert found.sentence == f"`seed` must be in [0, 4294967295], but is {seed} instead. Set seed=0."


@pytest.mark.parametrize(
    ("method", "rate"), [("full", "1e-5"), ("freeze", "1e-5"), ("lora", "1e-4"), ("ia3", "3e-3")]
)
def test_the_rate_that_is_advised_suits_what_is_trained(tmp_path, method, rate):
    config = tiny_config(tmp_path)
    config.optim.lr, config.tune.method = -1.0, TuneMethod(method)
    said = [one.sentence for one in find_problems(config) if one.key == "optim.lr"]
    assert said == [f"`optim.lr` must be more than 0, but is -1.0 instead. Set optim.lr={rate}."]
