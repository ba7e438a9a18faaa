"""Fused kernels: none on a CPU, and a sentence where they were asked for and cannot be had."""

import importlib
import importlib.util
import logging
import sys
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM

from tests.helpers.families import FAMILIES
from tests.helpers.tiny_families import tiny_config
from trainer.config.model import Kernels, ModelConfig, ModelKind
from trainer.errors import ModelError
from trainer.model.attention import AttentionChoice
from trainer.model.kernels import apply_kernels, missing_kernels, say_missing_kernels
from trainer.model.load import load_model
from trainer.model.tune.adapters import ADAPTER
from trainer.model.tune.gated import fuse_if_same

HAS_LIGER = importlib.util.find_spec("liger_kernel") is not None


@pytest.mark.parametrize(
    ("asked", "on_gpu", "why"),
    [
        (Kernels.none, False, "model.kernels=none"),
        (Kernels.none, True, "model.kernels=none"),
        (Kernels.auto, False, "no GPU"),
    ],
)
def test_nothing_is_patched_where_nothing_is_asked_or_there_is_no_gpu(asked, on_gpu, why):
    assert apply_kernels(None, asked, on_gpu) == f"not Liger's ({why})"


def test_a_log_tells_liger_and_fused_lora_apart():
    """It said "kernels none, LoRA fused into 14 of 14 layers"."""
    model = PeftModel(
        AutoModelForCausalLM.from_config(tiny_config(FAMILIES["Llama 3"])),
        LoraConfig(r=2, target_modules=["q_proj"]),
        ADAPTER,
    )
    num_layers = model.config.num_hidden_layers
    said = [
        apply_kernels(model, asked, False) + fuse_if_same(model, asked, 1, num_layers, on_gpu=False)
        for asked in (Kernels.auto, Kernels.none)
    ]
    assert said == [
        f"not Liger's (no GPU), LoRA fused into {num_layers} of {num_layers} layers",
        "not Liger's (model.kernels=none), LoRA by peft",
    ]


def test_liger_without_a_gpu_is_refused_with_the_fix():
    with pytest.raises(ModelError, match=r"without a GPU, but is liger instead\. Set model\.kernels=auto\."):
        apply_kernels(None, Kernels.liger, on_gpu=False)


@pytest.mark.skipif(HAS_LIGER, reason="liger-kernel is installed")
def test_a_missing_liger_is_said_in_the_log_or_refused_with_the_install_line():
    assert apply_kernels(None, Kernels.auto, on_gpu=True) == "not Liger's (liger-kernel is not installed)"
    with pytest.raises(
        ModelError, match=r"pip install 'palimpsest-trainer\[gpu\]'; or set model\.kernels=auto"
    ):
        apply_kernels(None, Kernels.liger, on_gpu=True)


@pytest.mark.skipif(not HAS_LIGER, reason="liger-kernel is not installed")
def test_an_architecture_that_liger_does_not_know_is_left_alone_or_refused_by_name():
    model = SimpleNamespace(config=SimpleNamespace(model_type="strange"))
    assert apply_kernels(model, Kernels.auto, on_gpu=True) == "not Liger's (it does not know strange)"
    with pytest.raises(ModelError, match="must be none for the architecture strange, but is liger"):
        apply_kernels(model, Kernels.liger, on_gpu=True)


@pytest.mark.parametrize(
    ("family", "packages"),
    [
        ("Llama 3", {}),
        ("Mamba-2", {"causal_conv1d": "causal-conv1d", "mamba_ssm": "mamba-ssm"}),
        ("Qwen3.5, language model", {"causal_conv1d": "causal-conv1d", "fla": "flash-linear-attention"}),
    ],
)
def test_a_gpu_that_computes_layers_in_plain_torch_is_told_what_to_install(family, packages):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config(FAMILIES[family]))
    missing = [name for key, name in packages.items() if importlib.util.find_spec(key) is None]
    assert missing_kernels(model) == missing
    said = say_missing_kernels(model, on_gpu=True)
    assert said is None if not missing else str(said).endswith(f"pip install {' '.join(missing)}")
    assert say_missing_kernels(model, on_gpu=False) is None


KERNELS = {
    "fla/ops/gated_delta_rule": ("chunk_gated_delta_rule", "fused_recurrent_gated_delta_rule"),
    "mamba_ssm/ops/triton/ssd_combined": ("mamba_chunk_scan_combined", "mamba_split_conv1d_scan_combined"),
    "mamba_ssm/ops/triton/selective_state_update": ("selective_state_update",),
    "causal_conv1d": ("causal_conv1d_fn", "causal_conv1d_update"),
}
"""Functions that transformers takes from packages where these can be imported."""


@pytest.fixture
def without_gpu(monkeypatch, tmp_path):
    """Install what computes on GPUs alone; the models' files are read again, as in a process that begins."""
    for place, functions in KERNELS.items():
        folder = tmp_path / place
        folder.mkdir(parents=True)
        lines = [
            f"def {name}(*args, **kwargs): raise RuntimeError('0 active drivers ([]).')" for name in functions
        ]
        (folder / "__init__.py").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    packages = {place.partition("/")[0] for place in KERNELS}
    for name in list(sys.modules):
        if name.partition(".")[0] in packages:
            monkeypatch.delitem(sys.modules, name)

    def read_again(model_type):
        package = importlib.import_module(f"transformers.models.{model_type}")
        monkeypatch.delitem(sys.modules, f"{package.__name__}.modeling_{model_type}", raising=False)
        for name in [name for name in vars(package) if name.endswith(("ForCausalLM", "Model"))]:
            delattr(package, name)

    yield read_again
    for name in list(sys.modules):
        if name.partition(".")[0] in packages:
            del sys.modules[name]


@pytest.mark.parametrize(
    ("family", "packages"),
    [
        ("OLMo Hybrid", "causal-conv1d and flash-linear-attention"),
        ("Bamba", "causal-conv1d and mamba-ssm"),
    ],
)
def test_kernels_that_need_a_gpu_are_left_out_where_there_is_none_and_that_is_said(
    without_gpu, caplog, tmp_path, family, packages
):
    config = tiny_config(FAMILIES[family])
    config.save_pretrained(tmp_path / "model")
    without_gpu(config.model_type)
    tokens_1T = torch.arange(40)[None]
    with pytest.raises(RuntimeError, match="0 active drivers"):
        AutoModelForCausalLM.from_config(config)(input_ids=tokens_1T)
    asked = ModelConfig(path=str(tmp_path / "model"), kind=ModelKind.random)
    with caplog.at_level(logging.INFO, "trainer"):
        loaded = load_model(
            asked.path, asked, AttentionChoice("sdpa", "asked for"), "fp32", None, torch.device("cpu")
        )
    loss = loaded.model(input_ids=tokens_1T, labels=tokens_1T).loss
    loss.backward()
    assert loss.isfinite() and loaded.model.get_input_embeddings().weight.grad.any()
    assert [line for line in caplog.messages if "plain torch" in line] == [
        f"Layers of this model are computed in plain torch: kernels of {packages} are installed, but run on a GPU "
        "alone, and this rank has none."
    ]
