"""Fused kernels: none on a CPU, and a sentence where they were asked for and cannot be had."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.tiny_families import FAMILIES, tiny_config
from trainer.config.model import Kernels
from trainer.errors import ModelError
from trainer.model.kernels import apply_kernels, missing_kernels, say_missing_kernels

HAS_LIGER = importlib.util.find_spec("liger_kernel") is not None


@pytest.mark.parametrize(
    ("asked", "on_gpu"), [(Kernels.none, False), (Kernels.none, True), (Kernels.auto, False)]
)
def test_nothing_is_patched_where_nothing_is_asked_or_there_is_no_gpu(asked, on_gpu):
    assert apply_kernels(None, asked, on_gpu) == "none"


def test_liger_without_a_gpu_is_refused_with_the_fix():
    with pytest.raises(ModelError, match=r"without a GPU, but is liger instead\. Set model\.kernels=auto\."):
        apply_kernels(None, Kernels.liger, on_gpu=False)


@pytest.mark.skipif(HAS_LIGER, reason="liger-kernel is installed")
def test_a_missing_liger_is_said_in_the_log_or_refused_with_the_install_line():
    assert apply_kernels(None, Kernels.auto, on_gpu=True) == "none (liger-kernel is not installed)"
    with pytest.raises(
        ModelError, match=r"pip install 'palimpsest-trainer\[gpu\]'; or set model\.kernels=auto"
    ):
        apply_kernels(None, Kernels.liger, on_gpu=True)


@pytest.mark.skipif(not HAS_LIGER, reason="liger-kernel is not installed")
def test_an_architecture_that_liger_does_not_know_is_left_alone_or_refused_by_name():
    model = SimpleNamespace(config=SimpleNamespace(model_type="strange"))
    assert apply_kernels(model, Kernels.auto, on_gpu=True) == "none (liger does not know strange)"
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
