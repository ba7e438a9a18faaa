"""Overrides that Hydra alone would refuse: new sources and DeepSpeed keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.config.data import Format
from trainer.config.gate import TaskRule
from trainer.config.store import compose_config, load_config, to_yaml
from trainer.errors import ConfigError


def test_a_source_is_added_from_the_command_line_beside_those_of_the_group() -> None:
    config = compose_config(
        [
            "data=text",
            "data.sources.corpus.path=a.txt",
            "data.sources.mine.path=chats/*.jsonl",
            "data.sources.mine.format=chat",
            "data.sources.mine.columns.messages=turns",
        ]
    )
    assert list(config.data.sources) == ["corpus", "mine"]
    mine = config.data.sources["mine"]
    assert (mine.path, mine.format, mine.columns.messages) == (
        f"{Path.cwd()}/chats/*.jsonl",
        Format.chat,
        "turns",
    )


def test_deepspeed_keys_are_added_without_hydras_plus() -> None:
    config = compose_config(["zero.extra.zero_optimization.zero_hpz_partition_size=8"])
    assert config.zero.extra == {"zero_optimization": {"zero_hpz_partition_size": 8}}
    whole = compose_config(["zero.extra={zero_optimization:{zero_hpz_partition_size:8}}"])
    assert whole.zero.extra == config.zero.extra


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("data.sources.mine.pth=x", "data.sources.NAME.path"),
        ("data.sources.mine.colums.text=x", "data.sources.NAME.columns"),
    ],
)
def test_a_typo_in_a_new_source_names_the_nearest_field(override: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match="Unknown key") as error:
        compose_config([override])
    assert nearest in str(error.value)


def test_gate_rules_and_task_names_are_added_from_the_command_line(tmp_path):
    words = [
        "evaluate.tasks.names=[arc_easy,mine]",
        "gate.tasks.mine.metric=f1",
        "gate.tasks.mine.max_drop=0.02",
    ]
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(compose_config(["model=tiny"])))
    for config in (compose_config([*words, "gate.sets.general.max_rise_nats=0.1"]), load_config(path, words)):
        assert config.evaluate.tasks.names == ["arc_easy", "mine"] and config.gate.has_rules
        assert config.gate.tasks["mine"] == TaskRule(metric="f1", max_drop=0.02)
    with pytest.raises(ConfigError, match=r"Did you mean `gate.tasks.NAME.max_drop`"):
        compose_config(["gate.tasks.mine.max_dorp=0.1"])


def test_a_gate_is_chosen_for_a_frozen_configuration(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(compose_config(["model=tiny"])))
    assert load_config(path).gate.sets == {}
    for word in ("gate=default", "gate=true"):
        rules = load_config(path, [word, "gate.sets.general.max_rise_nats=0.2"]).gate.sets
        assert rules["general"].max_rise_nats == 0.2 and rules["target"].min_drop_nats == 0.0
    with pytest.raises(ConfigError, match="`gate=defualt` is not an option of the group `gate`"):
        load_config(path, ["gate=defualt"])


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["run_dir=runs/first"], "first"),
        (["run_dir=runs/first/"], "first"),
        (["run_dir=runs/first", "name=mine"], "mine"),
        (["run_dir=runs/first", "name=run"], "run"),
        (["run_dir=/elsewhere/${name}"], "run"),
        (["name=mine"], "mine"),
        ([], "run"),
        (["experiment=llama3_1_8b_lora", "run_dir=runs/first"], "llama3_1_8b_lora"),
    ],
)
def test_a_run_of_which_only_the_directory_is_said_is_named_after_it(words, name):
    assert compose_config(words).name == name
