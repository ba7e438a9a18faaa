"""No text of a configuration has control characters, wherever it stands; shell lines may have ends of lines."""

import dataclasses

import pytest

from trainer.config.check_text import text_problems
from trainer.config.cluster import ClusterConfig
from trainer.config.describe import fields
from trainer.config.schema import RunConfig
from trainer.config.store import compose_config
from trainer.errors import ConfigError

TEXTS = [key for key, field in fields().items() if field.hint is str and "NAME" not in key]


@pytest.mark.parametrize("mark", ["\n", "\r", "\0", "\x1b", "\x85", "\u2028", "\u2029", "\u202e", "\udce4"])
def test_a_control_character_is_refused(mark):
    (found,) = text_problems(ClusterConfig(partition=f"a{mark}b"), "cluster")
    assert found.key == "cluster.partition"
    assert found.sentence.isprintable(), "the sentence itself would do what it warns of"
    assert found.sentence.startswith(
        "`cluster.partition` must be a text without control characters, but is 'a\\"
    )


def test_every_text_of_the_schema_is_looked_at():
    assert len(TEXTS) > 40
    for key in TEXTS:
        config = RunConfig()
        *sections, name = key.split(".")
        owner = config
        for section in sections:
            owner = getattr(owner, section)
        setattr(owner, name, "a\x1bb")
        assert [found.key for found in text_problems(config)] == [key]


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ('cluster.account="a\nb"', "cluster.account"),
        ('cluster.environment.NOTE="a\\nb"', "cluster.environment.NOTE"),
        ('cluster.modules=["a\nb"]', "cluster.modules"),
        ('zero.extra.comms_logger.note="a\\nb"', "zero.extra.comms_logger.note"),
        ('data.sources.a.path="x\\ny"', "data.sources.a.path"),
    ],
)
def test_a_command_line_is_refused_with_its_key(word, key):
    with pytest.raises(ConfigError, match=rf"`{key}` must be a text without control characters"):
        compose_config(["model=tiny", word])


def test_what_a_model_is_asked_may_have_lines():
    config = compose_config(["model=tiny", 'synthetic.raft.prompt="{question}\n\n{documents}"'])
    assert config.synthetic.raft.prompt == "{question}\n\n{documents}"


def test_a_name_of_an_entry_is_a_text_too():
    (found,) = text_problems({"environment": {"A\nexport B": "x"}}, "cluster")
    assert found.key == "cluster.environment" and found.sentence.isprintable()


def test_lines_of_shell_may_end_but_not_move_the_cursor():
    cluster = ClusterConfig(setup=["if true; then\n\techo\nfi"])
    assert [*text_problems(cluster, "cluster")] == []
    (found,) = text_problems(dataclasses.replace(cluster, setup=["a\x1b[2J"]), "cluster")
    assert "but ends of lines and tabs" in found.sentence


def test_letters_of_any_script_are_texts():
    assert [*text_problems(ClusterConfig(account="Übung 検証 עברית 🙂"), "cluster")] == []
