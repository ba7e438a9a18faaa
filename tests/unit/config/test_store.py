"""Overrides that Hydra alone would refuse: new sources and DeepSpeed keys."""

from __future__ import annotations

import pytest

from trainer.config.data import Format
from trainer.config.store import compose_config
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
    assert (mine.path, mine.format, mine.columns.messages) == ("chats/*.jsonl", Format.chat, "turns")


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
