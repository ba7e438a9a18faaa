"""FLOPs and MFU against the worked numbers of performance.md section 5."""

from __future__ import annotations

import pytest

from trainer.errors import ModelError
from trainer.metrics.flops import flops_per_token, mfu, peak_flops, shape_from_config

LLAMA3_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
# Queries are wider than the hidden size, and the embedding is tied.
QWEN3_4B = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}


def test_llama3_8b_has_the_parameters_of_the_published_model() -> None:
    shape = shape_from_config(LLAMA3_8B)
    assert shape.num_matmul_params == pytest.approx(7.5047e9, rel=1e-4)
    assert shape.num_params == 8_030_261_248


def test_head_dim_of_the_config_wins_over_hidden_size() -> None:
    shape = shape_from_config(QWEN3_4B)
    assert shape.q_dim == 4096
    assert shape.num_matmul_params == pytest.approx(4.022e9, rel=1e-3)
    assert shape.num_params - shape.num_matmul_params < 1e6


def test_missing_head_counts_fall_back_to_full_attention() -> None:
    config = {**LLAMA3_8B, "num_key_value_heads": None, "head_dim": None}
    per_layer = 4 * 4096 * 4096 + 3 * 4096 * 14336
    assert shape_from_config(config).num_matmul_params == 32 * per_layer + 128256 * 4096


@pytest.mark.parametrize(
    ("seq_len", "causal", "expected"),
    [(4096, True, 48.25e9), (8192, True, 51.47e9), (4096, False, 51.47e9), (8192, False, 57.91e9)],
)
def test_flops_per_token_of_llama3_8b(seq_len: int, causal: bool, expected: float) -> None:
    """A factor of two here is the causal half counted twice, or not at all."""
    flops = flops_per_token(shape_from_config(LLAMA3_8B), seq_len, causal)
    assert flops == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize(("seq_len", "tokens_per_s"), [(4096, 12_303), (8192, 11_533)])
def test_sixty_percent_mfu_on_h100(seq_len: int, tokens_per_s: float) -> None:
    flops = flops_per_token(shape_from_config(LLAMA3_8B), seq_len)
    peak = peak_flops("NVIDIA H100 80GB HBM3")
    assert peak is not None
    assert mfu(tokens_per_s, flops, peak) == pytest.approx(0.6, rel=2e-4)


def test_frozen_base_costs_four_n() -> None:
    """LoRA r16 on all linear layers: counting 6N would report an MFU half too high."""
    flops = flops_per_token(shape_from_config(LLAMA3_8B), 4096, num_adapter_params=41_943_040)
    assert flops == pytest.approx(33.49e9, rel=2e-4)


def test_short_documents_cost_less_attention_than_one_long_one() -> None:
    shape = shape_from_config(LLAMA3_8B)
    lengths = [1024] * 4
    mean_len = sum(n * n for n in lengths) / sum(lengths)
    saved = flops_per_token(shape, 4096) - flops_per_token(shape, mean_len)
    assert saved == pytest.approx(6 * 3072 * 4096 * 32)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H200, 139.8 GiB", 989.4),
        ("NVIDIA H20", 148),
        ("NVIDIA L40S", 362),
        ("NVIDIA A10", 125),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA B200", 2250),
        ("AMD Instinct MI300X", 1307.4),
    ],
)
def test_peak_of_known_devices(name: str, tflops: float) -> None:
    assert peak_flops(name) == pytest.approx(tflops * 1e12)


@pytest.mark.parametrize(
    "name",
    [
        "CPU, 2 cores, 23.5 GiB",
        "NVIDIA A1000",
        "NVIDIA A10G",
        "NVIDIA A100-SXM4-80GB MIG 1g.10gb",
        "RTX 4090 D",
    ],
)
def test_peak_of_unknown_or_partial_devices_is_none(name: str) -> None:
    assert peak_flops(name) is None


def test_config_without_sizes_names_the_key() -> None:
    with pytest.raises(ModelError, match="`hidden_size`"):
        shape_from_config({"n_embd": 768})


def test_mixture_of_experts_is_refused_instead_of_counted_wrong() -> None:
    with pytest.raises(ModelError, match="experts"):
        shape_from_config({**LLAMA3_8B, "num_local_experts": 8})
