"""What names the environment is used by its value and written down as it was given."""

import copy
import json
import os
import pickle
import stat

import pytest
import yaml

from trainer.config.cluster import ClusterConfig
from trainer.config.reference import EnvText, shell_pieces, variables_named
from trainer.config.snapshot import config_digest, differences, freeze, holds_values
from trainer.config.store import compose_config, load_config, to_plain, to_yaml
from trainer.errors import ConfigError

CANARY = "canary-3fd1"
WORDS = (
    *("model=tiny", "data=text", "data.sources.corpus.path='https://me:${oc.env:CANARY}@host/rows.jsonl'"),
    *(
        "cluster.environment.HF_TOKEN=${oc.env:CANARY}",
        "cluster.environment.AGAIN=${cluster.environment.HF_TOKEN}",
    ),
    *(
        "log.mlflow.uri='https://me:${oc.env:CANARY}@host'",
        "log.group=${name}-group",
        "name=of-${oc.env:CANARY}",
    ),
)


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setenv("CANARY", CANARY)
    return compose_config(WORDS)


def test_values_are_used_and_references_written(config, tmp_path):
    assert config.cluster.environment == {"HF_TOKEN": CANARY, "AGAIN": CANARY}
    assert config.data.sources["corpus"].path == f"https://me:{CANARY}@host/rows.jsonl"
    assert config.log.group == f"of-{CANARY}-group"
    for text in (to_yaml(config), json.dumps(to_plain(config)), repr(config.cluster)):
        assert CANARY not in text.replace(config.run_dir, ""), (
            "a place on disk alone is frozen with its value"
        )
    written = yaml.safe_load(to_yaml(config))
    assert written["cluster"]["environment"] == {"HF_TOKEN": "${oc.env:CANARY}", "AGAIN": "${oc.env:CANARY}"}
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert load_config(path) == config


def test_a_key_that_was_changed_meanwhile_goes_on_with_the_run(config, monkeypatch):
    monkeypatch.setenv("CANARY", "another")
    now = compose_config([word.replace("name=of-${oc.env:CANARY}", "name=of") for word in WORDS])
    assert differences(config, now) == [] and config_digest(config) == config_digest(now)


def test_a_variable_that_is_missing_is_named(config, tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    monkeypatch.delenv("CANARY")
    with pytest.raises(
        ConfigError,
        match=r"must be a variable of the environment that is set, but is 'CANARY' .*Export CANARY",
    ):
        load_config(path)


def test_a_text_with_dollars_is_the_same_after_it_was_frozen(tmp_path):
    config = compose_config(["model=tiny", r"log.group='\${not.a.key}'", "cluster.environment.A='$HOME/x'"])
    assert config.log.group == "${not.a.key}"
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert load_config(path) == config


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_is_a_reference(copied):
    made = copied(EnvText("value", "${oc.env:X}"))
    assert (made, str(made), made.raw, repr(made)) == ("value", "value", "${oc.env:X}", "'${oc.env:X}'")


def test_pieces_for_a_shell_and_names_of_variables():
    one = EnvText("av b", "a${oc.env:X} b${oc.env: Y}")
    assert shell_pieces(one) == [("a", False), ("X", True), (" b", False), ("Y", True)]
    assert shell_pieces(EnvText("a", "${oc.env:X,other}")) is None
    assert variables_named(ClusterConfig(environment={"A": one})) == ["X", "Y"]


@pytest.mark.parametrize(
    ("word", "is_private"),
    [
        ("cluster.environment.HF_TOKEN=${oc.env:CANARY}", False),
        (f"cluster.environment.HF_TOKEN={CANARY}", True),
        (f"log.mlflow.uri=https://me:{CANARY}@host", True),
        ("log.mlflow.uri=https://${oc.env:CANARY}@host", False),
        (f"data.sources.a.path=https://host/x?X-Amz-Signature={CANARY}", True),
        ("log.mlflow.uri=https://host", False),
    ],
)
def test_a_file_with_values_is_its_owners_alone(tmp_path, monkeypatch, word, is_private):
    monkeypatch.setenv("CANARY", CANARY)
    config = compose_config(["model=tiny", word])
    assert holds_values(config) is is_private
    before = os.umask(0o022)
    try:
        path = freeze(config, tmp_path / "run")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == (0o600 if is_private else 0o644)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750, (
        "others have nothing to look for in a run directory"
    )


def test_a_run_directory_that_is_there_keeps_its_mode(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o755)
    freeze(compose_config(["model=tiny"]), tmp_path / "run")
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o755
