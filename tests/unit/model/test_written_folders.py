"""A folder as transformers writes it is counted before a run, whatever the family."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.helpers.families import FAMILIES
from tests.helpers.tiny_families import tiny_config
from trainer.command.counted import find_shape
from trainer.config.model import ModelConfig
from trainer.errors import ModelError

ODD = ("Falcon Mamba", "Falcon-H1", "Granite 4", "Mamba-2", "Qwen3-MoE")
"""Without heads of attention, with numbers that JSON has not, or under other names than publishers write."""
BY_CLASS = ("Ministral 3", "Mistral Small 3.1", "Qwen2.5-VL", "Qwen3-VL")
"""A configuration alone does not say what they are: the name of a class beside it does."""

IN_PARTS = "BLT"
"""Its sizes are those of four parts. Training refuses it."""


@pytest.mark.parametrize(
    "name",
    [
        name if name in ODD else pytest.param(name, marks=pytest.mark.slow)
        for name in FAMILIES
        if name not in (*BY_CLASS, IN_PARTS)
    ],
)
def test_a_folder_is_counted_as_it_is_built(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    config = tiny_config(FAMILIES[name])
    config.save_pretrained(tmp_path)
    found, _ = find_shape(ModelConfig(path=str(tmp_path)))
    assert found.num_layers == config.get_text_config().num_hidden_layers
    if config.get_text_config() is config:
        with torch.device("meta"):
            built = AutoModelForCausalLM.from_config(config)
        assert found.num_params == sum(one.numel() for one in built.parameters())


def test_a_state_space_model_has_no_heads(tmp_path: Path) -> None:
    tiny_config(FAMILIES["Falcon Mamba"]).save_pretrained(tmp_path)
    found, _ = find_shape(ModelConfig(path=str(tmp_path)))
    assert (found.num_heads, found.q_dim, found.kv_dim) == (0, 0, 0)


def test_a_model_whose_sizes_are_in_parts_is_not_forecast(tmp_path: Path) -> None:
    tiny_config(FAMILIES[IN_PARTS]).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"`hidden_size` .* is None instead. Its memory cannot be forecast"):
        find_shape(ModelConfig(path=str(tmp_path)))


@pytest.mark.parametrize("family", ["Mamba-2", "Falcon-H1"])
def test_a_value_of_another_type_is_named(tmp_path: Path, family: str) -> None:
    """transformers checks types with an error of its own class, and a person saw its traceback."""
    tiny_config(FAMILIES[family]).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hidden_size": "64"}))
    with pytest.raises(ModelError, match="hidden_size"):
        find_shape(ModelConfig(path=str(tmp_path)))
