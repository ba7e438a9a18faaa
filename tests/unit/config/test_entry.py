"""Mappings on the command line: every one of the schema takes values in every way that a file has, and says what it
does not take."""

import pytest

from trainer.config.entry import is_entry, mapping_keys
from trainer.config.override import read_entries
from trainer.config.store import compose_config, load_config, to_yaml
from trainer.errors import ConfigError


def at(config, key):
    for part in key.split("."):
        config = config[part] if isinstance(config, dict) else getattr(config, part)
    return config


def test_the_mappings_of_the_schema_are_found():
    expected = {
        "cluster.environment",
        "cluster.nccl",
        "data.sources",
        "gate.sets",
        "gate.tasks",
        "model.tiny",
        "zero.extra",
    }
    assert expected <= set(mapping_keys())


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    path = tmp_path_factory.mktemp("frozen") / "config.yaml"
    path.write_text(to_yaml(compose_config(["model=tiny"])))
    return path


@pytest.mark.parametrize("sign", ["", "+", "++"])
@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["cluster.environment={A: b}"], "cluster.environment", {"A": "b"}),
        (["cluster.environment.A=b"], "cluster.environment", {"A": "b"}),
        (
            ["cluster.environment={A: b}", "cluster.environment.C=1"],
            "cluster.environment",
            {"A": "b", "C": "1"},
        ),
        (["cluster.nccl={NCCL_DEBUG: INFO}"], "cluster.nccl", {"NCCL_DEBUG": "INFO"}),
        (["cluster.nccl.NCCL_IB_HCA=mlx5_0,mlx5_1"], "cluster.nccl.NCCL_IB_HCA", "mlx5_0,mlx5_1"),
        (["zero.extra={a:{b:1e-5}}"], "zero.extra", {"a": {"b": 1e-5}}),
        (["cluster.environment={A: 'b c', D: \"1,2\"}"], "cluster.environment", {"A": "b c", "D": "1,2"}),
        (["data.sources.new.path='/a b'"], "data.sources.new.path", "/a b"),
        (["zero.extra={a: {b: 1e-5}}"], "zero.extra", {"a": {"b": 1e-5}}),
        (["zero.extra.a.b=1e-5"], "zero.extra", {"a": {"b": 1e-5}}),
        (["gate.tasks.X={max_drop: 0.25}"], "gate.tasks.X.max_drop", 0.25),
        (["gate.tasks={X: {max_drop: 0.25}}"], "gate.tasks.X.max_drop", 0.25),
        (["gate.sets.new.max_rise_nats=0.5"], "gate.sets.new.max_rise_nats", 0.5),
        (["data.sources.new={path: /x}"], "data.sources.new.path", "/x"),
        (["data.sources={new: {path: /x}}"], "data.sources.new.path", "/x"),
        (["model.tiny={hidden_size: 32}"], "model.tiny.hidden_size", 32),
    ],
)
def test_a_mapping_takes_values_in_every_spelling(frozen, sign, words, key, value):
    words = [f"{sign}{word}" for word in words]
    assert at(compose_config(words), key) == value
    assert at(load_config(frozen, words), key) == value


def test_what_is_given_is_merged_into_what_is_there():
    config = compose_config(["data=text", "data.sources={new: {path: x}}", "model.tiny.hidden_size=96"])
    assert list(config.data.sources) == ["corpus", "new"]
    assert config.model.tiny["hidden_size"] == 96 and config.model.tiny["num_hidden_layers"] > 0


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("cluster.environment=3", "`cluster.environment` must be a mapping, but is '3' instead."),
        (
            "cluster.environment=null",
            "`cluster.environment` must be a mapping of names to texts, but is null instead.",
        ),
        (
            "cluster.environment={A: {B: c}}",
            "`cluster.environment.A` must be one value, but is a mapping instead.",
        ),
        ("cluster.environment={A: [b]}", "`cluster.environment.A` must be one value, but is a list instead."),
        (
            "model.tiny.hidden_size=wide",
            "`model.tiny.hidden_size` must be a whole number, but is 'wide' instead.",
        ),
        ("data.sources.corpus=3", "`data.sources.corpus` must be a mapping, but is '3' instead."),
        (
            "data.sources.new={pth: x}",
            "Unknown key `data.sources.new.pth`. Did you mean `data.sources.NAME.path`?",
        ),
        ("gate.tasks.X={rule: 1}", "Unknown key `gate.tasks.X.rule`."),
        ("data.sources.new.path={", "`data.sources.new.path` must be given as KEY=VALUE"),
        ("data.sources..path=x", "`data.sources..path` must be given as KEY=VALUE"),
        ("zero.extra", "`zero.extra` must be given as KEY=VALUE"),
        ("~zero.extra=x", "`zero.extra` must be given, but '~zero.extra=x' would remove it instead."),
        ("~zero.extra", "`zero.extra` must be given, but '~zero.extra' would remove it instead."),
        (
            "~data.sources.corpus.path",
            "`data.sources.corpus.path` must be given, but '~data.sources.corpus.path' would remove it",
        ),
        (
            "~data.sources.copus",
            "`data.sources.copus` must be an entry of `data.sources` (corpus) to be removed, but is none instead. "
            "Leave ~data.sources.copus out.",
        ),
    ],
)
def test_a_value_that_no_mapping_takes_is_a_sentence(word, said):
    with pytest.raises(ConfigError) as caught:
        compose_config(["data=text", word])
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "experiment=null",
            "`experiment` must be the name of an option, but is null instead. Set experiment=none.",
        ),
        ("recipe=null", "`recipe` must be the name of an option, but is null instead. Set recipe=none."),
        (
            "model=null",
            "`model` must be the name of an option, but is null instead. Set model=NAME. Options:",
        ),
        ("optim=3", "`optim` must be the name of an option, but is 3 instead."),
        ("optim=[1]", "`optim` must be the name of an option, but is [1] instead."),
        ("data=true", "`data` must be the name of an option, but is true instead."),
        ("data=nonexistent", "`data=nonexistent` is not an option of the group `data`."),
        ("=3", "`=3` must be given as KEY=VALUE"),
        ("optim@x=adamw", "`optim` must be given without Hydra's '@', but is 'optim@x=adamw' instead."),
        (
            "+optim.lr=1",
            "`optim.lr` must be given without Hydra's '+', since it is there, but is '1' instead.",
        ),
        ("~optim.lr", "`optim.lr` must be left as it is, but is '~optim.lr' instead."),
        ("~nothing", "Unknown key `nothing`."),
        (
            "optim.lr=null",
            "`optim.lr` must be a number, but is null instead. Set optim.lr=1e-05, or leave it out.",
        ),
        ("optim.betas=3", "`optim.betas` must be a list, but is '3' instead."),
        (
            "optim.lr=${nothing}",
            "`optim.lr` must be a value, or ${KEY} of a key that there is, but is 'nothing'",
        ),
        ("name=${oc.env:PALIMPSEST_UNSET}", "`name` must be a variable of the environment that is set"),
    ],
)
def test_what_hydra_would_answer_in_its_own_words_is_a_sentence(word, said):
    with pytest.raises(ConfigError) as caught:
        compose_config([word])
    assert said in str(caught.value)


def test_only_mappings_and_what_is_below_them_are_entries():
    assert is_entry("zero.extra=1") and is_entry("+data.sources.a.path=x") and is_entry("~gate.sets")
    assert not any(map(is_entry, ("zero.stage=1", "zero.extras=1", "data=text", "data.seq_len=8")))
    assert read_entries([]) == {}


@pytest.mark.parametrize("words", [["tune=lora", "tune.r=4"], ["data.sources.a=x", "data.sources.a.path=y"]])
def test_a_value_is_not_lost_to_a_key_below_it(words):
    """`tune=lora tune.r=4` on a frozen configuration kept r alone and trained whole weights."""
    key = words[0].partition("=")[0]
    with pytest.raises(ConfigError, match=f"`{key}` must be a mapping for `{words[1]}`"):
        read_entries(words)
    assert read_entries(["tune.r=4", "tune.alpha=8"]) == {"tune": {"r": 4, "alpha": 8}}


def test_an_entry_is_removed_from_a_composition_and_from_a_frozen_configuration(tmp_path):
    words = ["data=text", "data.sources.other.path=x", "gate=default"]
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(compose_config(["model=tiny", "data=text", "data.sources.other.path=x"])))
    for config in (
        compose_config([*words, "~gate.sets.general"]),
        load_config(path, ["gate=default", "~gate.sets.general"]),
    ):
        assert list(config.gate.sets) == ["target"] and list(config.data.sources) == ["corpus", "other"]
    assert list(load_config(path, ["~data.sources.other"]).data.sources) == ["corpus"]
    with pytest.raises(ConfigError, match=r"`gate.sets.general` must be given or removed"):
        compose_config([*words, "gate.sets.general.max_rise_nats=1", "~gate.sets.general"])


@pytest.mark.parametrize(
    ("word", "says"),
    [
        (
            "data={sources: {x: {path: a, split: null}}}",
            "`data.sources` must be given by its own name, but stands inside data={...} instead. Write "
            "data.sources={x: ...}.",
        ),
        ("gate={tasks: {x: 1}}", "`gate.tasks` must be given by its own name, but stands inside gate={...}"),
        ("data={nothing: 1}", "Unknown key `data.nothing`."),
    ],
)
def test_entries_inside_a_whole_section_are_said_to_have_a_name_of_their_own(word, says):
    with pytest.raises(ConfigError) as error:
        compose_config(["model=tiny", word])
    assert says in str(error.value)
