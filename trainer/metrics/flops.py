"""FLOPs per token, peak FLOPs of known GPUs, and model FLOPs utilisation. Pure: no torch.

Recompute is never counted: this is MFU, not hardware utilisation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Dense bf16 FLOP/s as the vendors state it, without sparsity. A100, H100 SXM and H200 are those of
# performance.md; the others were not checked here. `log.peak_tflops` is for what is not listed.
# Every word must occur in the device name as a word of its own; the first match wins.
_PEAK_FLOPS: tuple[tuple[tuple[str, ...], float], ...] = (
    (("GB200",), 2500e12),
    (("B200",), 2250e12),
    (("GH200",), 989.4e12),
    (("H200", "NVL"), 835.5e12),
    (("H200",), 989.4e12),
    (("H100", "PCIE"), 756e12),
    (("H100", "NVL"), 835.5e12),
    (("H100",), 989.4e12),
    (("H800", "PCIE"), 756e12),
    (("H800",), 989.4e12),
    (("H20",), 148e12),
    (("A100",), 312e12),
    (("A800",), 312e12),
    (("A40",), 149.7e12),
    (("A30",), 165e12),
    (("A10",), 125e12),
    (("A6000",), 154.8e12),
    (("L40S",), 362e12),
    (("L40",), 181e12),
    (("L4",), 121e12),
    (("RTX", "6000", "ADA"), 364.2e12),
    (("4090",), 165.2e12),
    (("MI325X",), 1307.4e12),
    (("MI300X",), 1307.4e12),
)
_NOT_THE_WHOLE_CARD = {"MIG", "LAPTOP", "D"}


@dataclass(frozen=True)
class ModelShape:
    """The sizes that decide the FLOPs of a token."""

    num_matmul_params: int
    """Weights that a token is multiplied with: lm_head in, embedding out, of experts the share it is sent to."""
    num_layers: int
    q_dim: int
    """Attention heads x head dimension."""
    num_params: int
    """All weights."""


def flops_per_token(
    shape: ModelShape,
    mean_square_len_over_len: float,
    causal: bool = True,
    num_adapter_params: int | None = None,
) -> float:
    """Return the FLOPs of forward and backward for one token.

    `mean_square_len_over_len` is sum(len_i^2) / sum(len_i) over the packed documents: the
    sequence length when every pack is one document. `num_adapter_params` are the trainable
    weights beside a frozen base, which then costs 4N (no weight gradients) instead of 6N.

    Source:
        performance.md section 5.
    """
    if num_adapter_params is None:
        matmul = 6.0 * shape.num_matmul_params
    else:
        matmul = 4.0 * shape.num_matmul_params + 6.0 * num_adapter_params
    attention = 6.0 * mean_square_len_over_len * shape.q_dim * shape.num_layers
    return matmul + (attention if causal else 2.0 * attention)


def peak_flops(device_name: str) -> float | None:
    """Return the dense bf16 peak of a whole GPU in FLOP/s, or None for an unknown device."""
    words = set(re.split(r"[^A-Z0-9]+", device_name.upper()))
    if words & _NOT_THE_WHOLE_CARD:
        return None
    for required, peak in _PEAK_FLOPS:
        if words.issuperset(required):
            return peak
    return None


def mfu(tokens_per_s_per_gpu: float, flops_of_token: float, peak: float) -> float:
    """Return model FLOPs utilisation as a fraction of the peak."""
    return tokens_per_s_per_gpu * flops_of_token / peak
