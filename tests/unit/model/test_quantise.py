"""A base in 4 bits: what is packed, what is refused, and that nothing of it moves."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.helpers.tiny import save_llama
from trainer.config.model import ModelConfig, ModelKind
from trainer.config.tune import Quantise
from trainer.errors import ConfigError, ModelError, SelfCheckError
from trainer.forecast.adapter_sizes import adapter_weights
from trainer.forecast.shapes import decoder_shape
from trainer.model.attention import AttentionChoice
from trainer.model.base_files import open_base
from trainer.model.load import load_model
from trainer.model.tune.adapters import frozen_checksum
from trainer.model.tune.quantise import held_bytes, held_tensors, num_weights, quantised_layers
from trainer.model.verify_weights import verify_weights

SHAPE = {"hidden_size": 128, "intermediate_size": 256}
NUM_LINEAR = 14


@pytest.fixture
def folder(tmp_path):
    """Return the folder of a small Llama whose files can be changed."""
    save_llama(tmp_path / "model", **SHAPE)
    return tmp_path / "model"


def load(folder, dtype="bf16", sharded=None, **options):
    return load_model(
        str(folder),
        ModelConfig(path=str(folder), **options),
        AttentionChoice("sdpa", "asked for"),
        dtype,
        sharded,
        torch.device("cpu"),
        Quantise.nf4,
    )


def change(folder, edit):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def nothing_to_gather(parameters):
    import contextlib

    return contextlib.nullcontext()


@pytest.mark.parametrize(("dtype", "sharded"), [("bf16", None), ("bf16", {}), ("fp32", {}), ("fp32", None)])
def test_every_linear_layer_but_the_head_is_packed_at_half_a_byte(folder, dtype, sharded):
    loaded = load(folder, dtype, sharded)
    layers = quantised_layers(loaded.model)
    assert len(layers) == NUM_LINEAR and "lm_head" not in layers
    for layer in layers.values():
        held = next(held_tensors(layer.weight))
        assert held.numel() * held.element_size() == layer.in_features * layer.out_features / 2
        assert (held.dtype is torch.uint8) == (sharded is None), "ZeRO-3 gathers parameters of one dtype"
    config = json.loads((folder / "config.json").read_text())
    assert loaded.num_parameters == decoder_shape(config, "here").num_params
    assert sum(map(num_weights, loaded.model.parameters())) == loaded.num_parameters


@pytest.mark.parametrize("sharded", [None, {}])
def test_random_weights_are_packed_the_same_way(folder, sharded):
    kind = {"kind": ModelKind.random}
    loaded, random = load(folder, "bf16", sharded), load(folder, "bf16", sharded, **kind)
    assert random.num_parameters == loaded.num_parameters and random.model.is_loaded_in_4bit
    for mine, other in zip(random.model.parameters(), loaded.model.parameters(), strict=True):
        assert (mine.shape, mine.dtype) == (other.shape, other.dtype)
        assert [t.shape for t in held_tensors(mine)] == [t.shape for t in held_tensors(other)]


def test_the_forecast_of_the_base_is_what_is_held(folder):
    model = load(folder).model.requires_grad_(False)
    shape = decoder_shape(json.loads((folder / "config.json").read_text()), "here")
    tables = NUM_LINEAR * (16 + 256) * 4  # of 4 and 8 bits, in every layer; nothing beside a real one
    offsets = NUM_LINEAR * 4
    expected = adapter_weights(shape, 8, base_in_nf4=True).frozen_bytes
    assert held_bytes(model) - tables - offsets == pytest.approx(expected, rel=2e-3)


def test_a_whole_weight_is_let_go_when_it_is_packed(folder, monkeypatch):
    """More than one at a time: a rank holds the base in full precision while it loads."""
    import bitsandbytes.functional as functional
    from torch.multiprocessing.reductions import StorageWeakRef

    given, living, pack = [], [], functional.quantize_4bit

    def watched(weight, *arguments, **options):
        living.append(sum(not one.expired() for one in given))
        given.append(StorageWeakRef(weight.untyped_storage()))
        return pack(weight, *arguments, **options)

    monkeypatch.setattr(functional, "quantize_4bit", watched)
    load(folder)
    assert len(given) == NUM_LINEAR and max(living) <= 1


def test_no_constant_of_a_packed_weight_is_in_a_state_dict(folder):
    model = load(folder).model
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_a_flipped_bit_of_a_packed_weight_or_of_its_constants_is_found(folder):
    model = load(folder).model.requires_grad_(False)
    before = frozen_checksum(model)
    layer = quantised_layers(model)["model.layers.1.mlp.up_proj"]
    for held in held_tensors(layer.weight):
        bits = held.reshape(-1).view(torch.uint8)
        bits[-1] ^= 1
        assert frozen_checksum(model) != before
        bits[-1] ^= 1
    assert frozen_checksum(model) == before


@pytest.mark.parametrize("sharded", [None, {}])
def test_rows_that_are_no_whole_blocks_are_unpacked_with_the_scale_of_their_own_block(tmp_path, sharded):
    """bitsandbytes takes another block's where the processor has AVX-512. Rows grow, so that blocks differ."""
    widest_gap = (
        1.0 - 0.6961928
    )  # of NF4's sixteen values (QLoRA, appendix E), in shares of a block's largest
    folder = tmp_path / "model"
    save_llama(folder, hidden_size=96, intermediate_size=160)

    def grow(tensors):
        for name, tensor in tensors.items():
            if "_proj" in name:
                tensors[name] = tensor * torch.linspace(0.1, 4.0, len(tensor))[:, None]

    change(folder, grow)
    files = load_file(folder / "model.safetensors")
    for name, layer in quantised_layers(load(folder, "fp32", sharded).model).items():
        weight = files[f"{name}.weight"].flatten()
        unpacked = layer(torch.eye(layer.in_features)).T.flatten()
        largest = torch.nn.functional.pad(weight.abs(), (0, -len(weight) % 64)).view(-1, 64).amax(1)
        scales = largest.repeat_interleave(64)[: len(weight)]
        allowed = scales * widest_gap / 2 + largest.max() * 0.02  # the scales are packed too, in 8 bits
        assert ((unpacked - weight).abs() <= allowed).all(), name


def test_the_arithmetic_is_that_of_bitsandbytes(folder):
    model = load(folder, "fp32").model
    layer = quantised_layers(model)["model.layers.0.self_attn.k_proj"]
    x = torch.randn(2, 5, 128, requires_grad=True)
    bias = layer.bias = nn.Parameter(torch.randn(layer.out_features), requires_grad=False)
    ours = layer(x)
    (grad,) = torch.autograd.grad(ours.square().sum(), x)
    layer.train()
    theirs = type(layer).forward(layer, x)
    (their_grad,) = torch.autograd.grad(theirs.square().sum(), x)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad, their_grad, rtol=1e-5, atol=1e-5)
    assert bias.grad is None


def test_an_evaluation_does_not_pack_the_weights_anew(folder):
    model = load(folder).model.requires_grad_(False).eval()
    before = frozen_checksum(model)
    with torch.no_grad():
        model(torch.arange(20)[None])
    assert frozen_checksum(model) == before


def test_packed_weights_are_compared_with_what_packing_their_file_gives(folder):
    model = load(folder).model
    assert verify_weights(model, open_base(str(folder), ModelConfig()), nothing_to_gather) == 8

    def shift(tensors):
        for name in tensors:
            tensors[name] = tensors[name] * 1.1 if "proj" in name else tensors[name]

    change(folder, shift)
    with pytest.raises(SelfCheckError, match=r"The loaded parameter .*proj.weight must equal"):
        verify_weights(model, open_base(str(folder), ModelConfig()), nothing_to_gather)


BROKEN = {
    "missing": (
        lambda t: t.pop("model.layers.0.mlp.up_proj.weight"),
        "missing keys: model.layers.0.mlp.up_proj",
    ),
    "unexpected": (lambda t: t.update(stray=torch.ones(2)), "unexpected keys: stray"),
    "mismatched": (
        lambda t: t.update({"model.layers.1.mlp.up_proj.weight": torch.ones(64, 128)}),
        "mismatched keys: model.layers.1.mlp.up_proj",
    ),
    "mismatched, not packed": (
        lambda t: t.update({"model.norm.weight": torch.ones(64)}),
        r"mismatched keys: (\('model.norm.weight'|model.norm.weight is \[64\])",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_weights_that_do_not_match_are_refused(folder, kind):
    edit, said = BROKEN[kind]
    change(folder, edit)
    with pytest.raises(ModelError, match=said):
        load(folder)


def test_without_bitsandbytes_it_says_how_to_install_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError) as caught:
        load(folder)
    said = str(caught.value)
    assert said.startswith("`tune.quantise` must be none without bitsandbytes, but is nf4 instead")
    assert said.endswith("pip install 'palimpsest-trainer[qlora]'")
