"""What keys mean, out of the docstrings beside them: found for every key, and the key of a typo."""

import functools
from enum import Enum
from pathlib import Path

import pytest

from trainer.config import describe
from trainer.config.describe import fields, find_field, find_sections, nearest_keys, schema_key, sections
from trainer.config.explain import not_null
from trainer.config.optim import Offload
from trainer.config.store import compose_config, load_config, to_yaml
from trainer.errors import ConfigError


def test_every_key_and_every_word_of_a_choice_has_a_meaning():
    assert len(fields()) > 250
    assert [key for key, field in fields().items() if not field.meaning] == []
    bare = {key: word for key, field in fields().items() for word, told in field.choices.items() if not told}
    assert bare == {}
    assert [section.key for section in sections() if not section.meaning] == []


def test_a_field_says_its_type_unit_default_and_words():
    field = fields()["cluster.gpu_gib"]
    assert (field.kind, field.unit, field.default_text) == ("number, or null", "GiB", "null")
    field = fields()["zero.offload_param"]
    assert field.hint is Offload and issubclass(field.hint, Enum)
    assert field.kind == "one of none, cpu" and field.default_text == "none"
    assert field.choices == {"none": "On the GPU.", "cpu": "In host memory."}
    assert fields()["optim.betas"].default_text == "[0.9, 0.95]"
    assert fields()["optim.betas"].kind == "list of numbers"
    assert fields()["data.sources"].kind == "mapping of names to sections"
    assert fields()["data.values"].choices.keys() == {"label", "margin", "weight"}
    assert fields()["checkpoint.enabled"].default_text == "true"
    assert fields()["cluster.time_limit_min"].unit == "minutes"
    assert fields()["model.new_tokens"].unit == "", "a list is no number of tokens"


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ("data.sources.chat.path", "data.sources.NAME.path"),
        ("data.sources.chat.columns.text", "data.sources.NAME.columns.text"),
        ("gate.tasks.arc.metric", "gate.tasks.NAME.metric"),
        ("optim.lr", "optim.lr"),
        ("data.sources", "data.sources"),
        ("", ""),
        ("a..b", "a..b"),
    ],
)
def test_the_name_of_an_entry_stands_for_any(key, wanted):
    assert schema_key(key) == wanted
    assert (find_field(key) is not None) == (wanted in fields())


def test_a_section_brings_those_within_it():
    assert [s.key for s in find_sections("replay")] == ["replay", "replay.kl", "replay.generate"]
    assert [s.key for s in find_sections("gate.sets.general")] == ["gate.sets.NAME"]
    assert find_sections("") == find_sections("optim.lr") == []


def test_a_typo_and_a_bare_last_name_find_their_key():
    assert nearest_keys("optim.lrr")[0] == "optim.lr"
    assert nearest_keys("lr") == ["optim.lr"]
    assert "train.max_steps" in nearest_keys("max_step")
    assert nearest_keys("qqqqqq") == []


def test_the_parser_loads_neither_hydra_nor_omegaconf():
    text = Path(describe.__file__).read_text(encoding="utf-8")
    assert "import hydra" not in text and "from omegaconf" not in text


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        (
            "data.sources.x.split=null",
            "`data.sources.x.split` must be text, but is null instead. Set data.sources.x.split=train, or leave it "
            "out.",
        ),
        (
            "data.sources={x: {role: null}}",
            "`data.sources.x.role` must be one of target, replay, probe, but is null instead. Set "
            "data.sources.x.role=target, or leave it out.",
        ),
        (
            "train.isolation_probe=null",
            "`train.isolation_probe` must be true or false, but is null instead. Set train.isolation_probe=true, or "
            "leave it out.",
        ),
        (
            "tune.target=null",
            "`tune.target` must be a list of texts, but is null instead. Set 'tune.target=[all_linear]', or leave "
            "it out.",
        ),
        (
            "data.sources.x=null",
            "`data.sources.x` must be a mapping of keys to values, but is null instead. Leave it out for the default.",
        ),
        (
            "cluster.environment.A=null",
            "`cluster.environment.A` must be one value, but is null instead. Set cluster.environment.A=VALUE, or leave "
            "it out.",
        ),
    ],
)
def test_null_where_none_may_be_given_is_answered_with_kinds_and_a_value(tmp_path, word, sentence):
    """The same on the command line and beside a file: a number that is given null there had OmegaConf's words."""
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(compose_config(["model=tiny"])))
    for read in (compose_config, functools.partial(load_config, path)):
        with pytest.raises(ConfigError) as error:
            read([word])
        assert sentence in str(error.value)


def test_every_key_that_is_never_null_has_such_a_sentence():
    keys = [one.key for section in sections() for one in section.fields if not one.is_optional]
    assert len(keys) > 150
    for key in keys:
        said = not_null(key.replace("NAME", "x"))
        assert (
            said.startswith(f"`{key.replace('NAME', 'x')}` must be ")
            and ", but is null instead. Set " in said
        )
