"""FLOPs and MFU against the worked numbers of performance.md section 5."""

from __future__ import annotations

import pytest

from trainer.metrics.flops import ModelShape, flops_per_token, mfu, peak_flops

LAYER = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
LLAMA3_8B = ModelShape(
    num_matmul_params=32 * LAYER + 128256 * 4096, num_layers=32, q_dim=4096, num_params=8_030_261_248
)


@pytest.mark.parametrize(
    ("seq_len", "causal", "expected"),
    [(4096, True, 48.25e9), (8192, True, 51.47e9), (4096, False, 51.47e9), (8192, False, 57.91e9)],
)
def test_flops_per_token_of_llama3_8b(seq_len: int, causal: bool, expected: float) -> None:
    """A factor of two here is the causal half counted twice, or not at all."""
    flops = flops_per_token(LLAMA3_8B, seq_len, causal)
    assert flops == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize(("seq_len", "tokens_per_s"), [(4096, 12_303), (8192, 11_533)])
def test_sixty_percent_mfu_on_h100(seq_len: int, tokens_per_s: float) -> None:
    flops = flops_per_token(LLAMA3_8B, seq_len)
    peak = peak_flops("NVIDIA H100 80GB HBM3")
    assert peak is not None
    assert mfu(tokens_per_s, flops, peak) == pytest.approx(0.6, rel=2e-4)


def test_frozen_base_costs_four_n() -> None:
    """LoRA r16 on all linear layers: counting 6N would report an MFU half too high."""
    flops = flops_per_token(LLAMA3_8B, 4096, num_adapter_params=41_943_040)
    assert flops == pytest.approx(33.49e9, rel=2e-4)


def test_short_documents_cost_less_attention_than_one_long_one() -> None:
    lengths = [1024] * 4
    mean_len = sum(n * n for n in lengths) / sum(lengths)
    saved = flops_per_token(LLAMA3_8B, 4096) - flops_per_token(LLAMA3_8B, mean_len)
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
