"""Weights that become whole while they are read need room: in the memory that a machine has, which is stood in for."""

import re

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.helpers.multimodal import save_multimodal
from trainer.config.model import ModelConfig
from trainer.config.optim import ZeroConfig
from trainer.config.schema import RunConfig
from trainer.dist.mesh import alone
from trainer.errors import ModelError
from trainer.model.meta import count_whole
from trainer.run import room
from trainer.run.room import Room, require_room, without_room

SHAPE = {
    "vocab_size": 264,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FP8 = {"quant_method": "fp8", "weight_block_size": [16, 16]}
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder that says its weights are in FP8; and how many it has."""
    config = AutoConfig.for_model("llama", **SHAPE)
    with torch.device("meta"):
        count = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    config.quantization_config = FP8
    config.architectures = ["LlamaForCausalLM"]
    path = tmp_path_factory.mktemp("fp8")
    config.save_pretrained(path)
    return str(path), count


def asked(folder, device, dtype="bf16", stage=1, packing=FP8):
    config = RunConfig(model=ModelConfig(path=folder), zero=ZeroConfig(stage=stage, dtype=dtype))
    require_room(config, folder, packing, alone(device))


@pytest.mark.parametrize(("dtype", "size"), [("bf16", 2), ("fp32", 4)])
@pytest.mark.parametrize(("device", "stage"), [(CPU, 1), (CPU, 3), (GPU, 3)])
def test_host_memory_must_hold_the_weights_once_they_are_whole(
    folder, monkeypatch, device, stage, dtype, size
):
    path, count = folder
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 50, 1 << 50))
    monkeypatch.setattr(room, "bytes_available", lambda: size * count)
    asked(path, device, dtype, stage)
    monkeypatch.setattr(room, "bytes_available", lambda: size * count - 1)
    said = f"`model.path` must hold weights .* those of {re.escape(path)}, in fp8, take .* in {dtype} instead, and the "
    with pytest.raises(ModelError, match=said + r"host memory of .* GiB left\. Set ") as caught:
        asked(path, device, dtype, stage)
    assert ("zero.dtype=bf16" in str(caught.value)) == (dtype == "fp32")
    asked(path, device, dtype, stage, packing=None)
    asked(path, device, dtype, stage, packing={"quant_method": "bitsandbytes"})


def test_a_gpu_must_hold_them_where_they_are_not_sharded(folder, monkeypatch):
    path, count = folder
    monkeypatch.setattr(room, "bytes_available", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * count, 1 << 50))
    asked(path, GPU, packing={"quant_method": "mxfp4"})
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * count - 1, 1 << 50))
    with pytest.raises(ModelError, match=r"in mxfp4, take .* and GPU 0 of .* Set zero\.stage=3, or "):
        asked(path, GPU, packing={"quant_method": "mxfp4"})


def test_ranks_of_a_node_share_its_memory_and_each_has_its_gpu():
    assert without_room(10, [Room("a", 20), Room("a", 20)]) is None
    assert without_room(10, [Room("a", 20), Room("b", 19), Room("b", 20)]) == ("b", 2, 19)
    assert without_room(10, [Room("GPU 0", 10), Room("GPU 1", 9)]) == ("GPU 1", 1, 9)


def test_what_sees_is_counted_with_the_language_part(tmp_path):
    model = save_multimodal(tmp_path, "gemma3")
    assert count_whole(str(tmp_path), ModelConfig()) == sum(p.numel() for p in model.parameters())
