"""Folders with packed weights: read whole, read as they are, or refused by name; never trained as something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402

from trainer.config.model import ModelConfig  # noqa: E402
from trainer.config.tune import Quantise  # noqa: E402
from trainer.errors import ModelError  # noqa: E402
from trainer.model.attention import AttentionChoice  # noqa: E402
from trainer.model.load import load_model  # noqa: E402
from trainer.model.packed import now_whole, packing_of  # noqa: E402
from trainer.model.packing_kind import check_packing  # noqa: E402

NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
DOUBLE = {**NF4, "bnb_4bit_use_double_quant": True}
FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
"""What the 16 codes of MXFP4 mean (OCP Microscaling Formats, table of E2M1)."""


def load(folder: Path, attention: str = "sdpa", quantise: Quantise = Quantise.none) -> Any:
    choice = AttentionChoice(attention, "asked for")
    device = torch.device("cpu")
    return load_model(
        str(folder), ModelConfig(path=str(folder)), choice, "fp32", None, device, quantise
    ).model


@pytest.mark.parametrize(
    ("packing", "quantise", "said"),
    [
        ({"quant_method": "gptq", "bits": 4}, "none", "names the quantisation gptq instead.*merged into"),
        ({"quant_method": "compressed-tensors"}, "nf4", "names the quantisation compressed-tensors instead"),
        ({"bits": 4}, "none", "names the quantisation one without a name instead"),
        (
            {"quant_method": "bitsandbytes", "load_in_8bit": True},
            "nf4",
            "bitsandbytes without double quantisation",
        ),
        (NF4, "nf4", "bitsandbytes without double quantisation, or not in NF4"),
        (DOUBLE, "none", "`tune.quantise` must be nf4 for folder.*Set recipe=qlora"),
        ({"quant_method": "fp8"}, "nf4", "`tune.quantise` must be none for folder, whose weights are in fp8"),
        ({"quant_method": "mxfp4"}, "nf4", "whose weights are in mxfp4.*rounded twice"),
    ],
)
def test_what_is_not_read_is_refused_by_name(packing: dict[str, Any], quantise: str, said: str) -> None:
    config = AutoConfig.for_model("llama", quantization_config=packing)
    with pytest.raises(ModelError, match=said):
        check_packing(packing_of(config), "folder", Quantise[quantise])


@pytest.mark.parametrize(
    ("packing", "quantise"),
    [({"quant_method": "fp8"}, "none"), ({"quant_method": "mxfp4"}, "none"), (DOUBLE, "nf4")],
)
def test_what_is_read_is_not_refused(packing: dict[str, Any], quantise: str) -> None:
    check_packing(
        packing_of(AutoConfig.for_model("llama", quantization_config=packing)), "folder", Quantise[quantise]
    )


def save_fp8(folder: Path, num_layers: int = 1) -> tuple[dict[str, Any], int]:
    """Write a Llama whose layers are in FP8, and return what its weights mean and the bytes that are packed."""
    shape = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": num_layers, "vocab_size": 64}
    config = AutoConfig.for_model("llama", **shape, num_attention_heads=4, num_key_value_heads=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tensors = load_file(str(folder / "model.safetensors"))
    meant = {}
    for name in [name for name in tensors if "_proj" in name]:
        scales = 0.01 * (1 + torch.arange(4.0)).reshape(2, 2)
        coded = (50 * torch.randn(256, 256)).to(torch.float8_e4m3fn)
        tensors[name], tensors[f"{name}_scale_inv"] = coded, scales
        meant[name] = coded.float() * scales.repeat_interleave(128, 0).repeat_interleave(128, 1)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    describe(folder, {"quant_method": "fp8", "weight_block_size": [128, 128]})
    return meant, len(meant) * 256 * 256


def test_weights_in_blocks_of_fp8_become_what_they_stand_for(tmp_path: Path) -> None:
    """A failure points at scales that are divided by instead of multiplied with, or that meet another block."""
    meant, _ = save_fp8(tmp_path)
    model = load(tmp_path)
    found = model.state_dict()
    assert len(meant) == 7 and all(torch.equal(found[name], value) for name, value in meant.items())
    assert not hasattr(model.config, "quantization_config") and found.keys() == found.keys() - {"scale"}
    assert all("scale" not in name for name in found)


def save_mxfp4(folder: Path, num_layers: int = 1) -> tuple[dict[str, Any], int]:
    """Write a gpt-oss whose experts are in MXFP4, and return what they mean and the bytes that are packed."""
    shape = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": num_layers,
        "vocab_size": 64,
        "head_dim": 16,
    }
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model("gpt_oss", **shape, **heads, num_local_experts=2, num_experts_per_tok=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tensors = load_file(str(folder / "model.safetensors"))
    meant, num_bytes = {}, 0
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        num_experts, width, rows = tensors.pop(name).shape
        codes = torch.randint(0, 256, (num_experts, rows, width // 32, 16), dtype=torch.uint8)
        exponents = torch.randint(118, 124, (num_experts, rows, width // 32), dtype=torch.uint8)
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = codes, exponents
        num_bytes += codes.numel() + exponents.numel()
        values = torch.stack([FP4[(codes & 15).long()], FP4[(codes >> 4).long()]], -1).flatten(-2)
        scaled = values * torch.exp2(exponents.float() - 127)[..., None]
        meant[name] = scaled.reshape(num_experts, rows, width).transpose(1, 2)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    describe(folder, {"quant_method": "mxfp4", "modules_to_not_convert": ["model.embed_tokens", "lm_head"]})
    return meant, num_bytes


def test_experts_in_mxfp4_become_what_they_stand_for(tmp_path: Path) -> None:
    """A failure points at the order of nibbles, at an exponent's bias of 127, or at rows that are columns."""
    meant, _ = save_mxfp4(tmp_path)
    model = load(tmp_path, "eager")
    found = model.state_dict()
    assert len(meant) == 2
    for name, value in meant.items():
        assert torch.equal(found[name].float(), value), name
    assert not hasattr(model.config, "quantization_config")
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}


def drop(ending: str) -> Callable[[dict[str, Any]], Any]:
    """Return a change that takes the first tensor with such a name out of a file."""
    return lambda tensors: tensors.pop(next(name for name in sorted(tensors) if name.endswith(ending)))


def unpack_first(tensors: dict[str, Any]) -> None:
    name = next(name for name in sorted(tensors) if name.endswith("down_proj.weight"))
    tensors[name] = tensors[name].float()


def cut_scales(tensors: dict[str, Any]) -> None:
    for name in [name for name in tensors if name.endswith("_scale_inv")]:
        tensors.pop(name)


DOWN = "model.layers.0.mlp.down_proj.weight"
EXPERTS = "model.layers.0.mlp.experts.down_proj"


@pytest.mark.parametrize(
    ("save", "packing", "change", "said"),
    [
        (
            "fp8",
            "fp8",
            drop("down_proj.weight_scale_inv"),
            rf"{DOWN} in F8_E4M3 without {DOWN}_scale_inv instead:",
        ),
        ("fp8", "fp8", unpack_first, rf"{DOWN} in F32 with {DOWN}_scale_inv, which only a packed weight has"),
        (
            "fp8",
            None,
            cut_scales,
            rf"{DOWN} in F8_E4M3 and no quantization_config.* \(and 6 more\): the model would",
        ),
        ("mxfp4", "mxfp4", drop("down_proj_scales"), f"{EXPERTS}_blocks without {EXPERTS}_scales"),
        ("mxfp4", "mxfp4", drop("down_proj_blocks"), f"{EXPERTS}_scales without {EXPERTS}_blocks"),
    ],
)
def test_packed_weights_without_their_scales_and_scales_without_them_are_refused(
    tmp_path: Path, save: str, packing: str | None, change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    """The codes of FP8 trained as if they were the weights, and weights that were whole were multiplied again."""
    (save_fp8 if save == "fp8" else save_mxfp4)(tmp_path)
    tensors = load_file(str(tmp_path / "model.safetensors"))
    change(tensors)
    save_file(tensors, str(tmp_path / "model.safetensors"), metadata={"format": "pt"})
    if packing is None:
        file = tmp_path / "config.json"
        record = json.loads(file.read_text())
        file.write_text(json.dumps({key: record[key] for key in record if key != "quantization_config"}))
    with pytest.raises(ModelError, match=said) as told:
        load(tmp_path, "sdpa" if save == "fp8" else "eager")
    assert "Get its files again, or name another model.path." in str(told.value)


def test_scales_under_other_names_of_transformers_belong_to_their_weights(tmp_path: Path) -> None:
    """DeepSeek-V4 writes `.scale`."""
    meant, _ = save_fp8(tmp_path)
    tensors = load_file(str(tmp_path / "model.safetensors"))
    renamed = {name.replace(".weight_scale_inv", ".scale"): tensor for name, tensor in tensors.items()}
    save_file(renamed, str(tmp_path / "model.safetensors"), metadata={"format": "pt"})
    found = load(tmp_path).state_dict()
    assert all(torch.equal(found[name], value) for name, value in meant.items())


def test_what_was_made_whole_is_held_in_the_type_asked_for() -> None:
    """transformers 5.17 makes bf16 of MXFP4 whatever it was asked for; in bf16 what it keeps in float32 stays."""
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("llama", **shape, vocab_size=8)
    kept = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModelForCausalLM.from_config(config).float()
        layer = model.model.layers[0].mlp
        layer.down_proj.to(torch.bfloat16)
        meant = layer.down_proj.weight.float()
        now_whole(model, dtype)
        assert torch.equal(layer.down_proj.weight.float(), meant)
        kept[dtype] = [layer.down_proj.weight.dtype, layer.up_proj.weight.dtype]
    assert kept == {
        torch.float32: [torch.float32, torch.float32],
        torch.bfloat16: [torch.bfloat16, torch.float32],
    }


@pytest.mark.parametrize("method", ["fp8", "mxfp4"])
def test_packed_weights_are_let_go_one_after_the_other_as_they_are_made_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """A failure means that a rank holds the packed model beside the whole one while it loads."""
    from torch.multiprocessing.reductions import StorageWeakRef
    from transformers.integrations import finegrained_fp8, mxfp4

    meant, packed = (save_fp8 if method == "fp8" else save_mxfp4)(tmp_path, num_layers=6)
    unpacker = finegrained_fp8.Fp8Dequantize if method == "fp8" else mxfp4.Mxfp4Dequantize
    given: list[tuple[StorageWeakRef, int]] = []
    living: list[int] = []
    convert = unpacker.convert

    def watched(self: Any, input_dict: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        living.append(sum(size for storage, size in given if not storage.expired()))
        for value in input_dict.values():
            for tensor in value if isinstance(value, list) else [value]:
                given.append(
                    (StorageWeakRef(tensor.untyped_storage()), tensor.numel() * tensor.element_size())
                )
        return convert(self, input_dict, *arguments, **options)

    monkeypatch.setattr(unpacker, "convert", watched)
    load(tmp_path, "sdpa" if method == "fp8" else "eager")
    assert sum(size for _, size in given) >= packed and len(living) >= len(meant)
    assert max(living) <= packed / 6, (max(living), packed)


def test_a_folder_in_nf4_is_read_as_it_is(tmp_path: Path) -> None:
    """A failure points at a second rounding: the packed bits must be the folder's."""
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    from trainer.model.tune.quantise import quantised_layers, whole_weight

    shape = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1, "vocab_size": 64}
    config = AutoConfig.for_model("llama", **shape, num_attention_heads=4, num_key_value_heads=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "whole")
    options = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    packed = AutoModelForCausalLM.from_pretrained(
        tmp_path / "whole", quantization_config=options, device_map="cpu"
    )
    packed.save_pretrained(tmp_path / "nf4")
    tensors = load_file(str(tmp_path / "nf4" / "model.safetensors"))
    theirs, ours = quantised_layers(packed), quantised_layers(load(tmp_path / "nf4", quantise=Quantise.nf4))
    assert theirs.keys() == ours.keys() and len(ours) == 7
    for name, layer in ours.items():
        bits, same = (one.weight.detach().as_subclass(torch.Tensor) for one in (layer, theirs[name]))
        assert torch.equal(bits.view(torch.uint8), same.view(torch.uint8)), name
        assert torch.equal(whole_weight(layer, torch.float32), whole_weight(theirs[name], torch.float32))
    bare = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{DOWN}.")}
    save_file(bare, str(tmp_path / "nf4" / "model.safetensors"), metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=rf"{DOWN} in U8 without {DOWN}.quant_state.bitsandbytes__nf4 instead: the"
    ):
        load(tmp_path / "nf4", quantise=Quantise.nf4)


def describe(folder: Path, packing: dict[str, Any]) -> None:
    """Write into a folder's configuration how its weights are packed."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": packing}))
