"""FLOPs per token, peak FLOPs of known GPUs, and model FLOPs utilisation. Pure: no torch.

Recompute is never counted: this is MFU, not hardware utilisation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.errors import ModelError

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
    """Weights that every token is multiplied with: lm_head in, embedding out."""
    num_layers: int
    q_dim: int
    """Attention heads x head dimension."""
    num_params: int
    """All weights, embedding and norms in; biases are left out."""


def shape_from_config(hf_config: Mapping[str, Any]) -> ModelShape:
    """Return the shape of a dense Llama-like model from its Hugging Face configuration.

    Raises:
        ModelError: If a size is missing, or the model is a mixture of experts.
    """
    if hf_config.get("num_local_experts") or hf_config.get("num_experts"):
        raise ModelError("FLOPs are known for dense models only, but the model has experts.")
    hidden = _size(hf_config, "hidden_size")
    ffn = _size(hf_config, "intermediate_size")
    num_layers = _size(hf_config, "num_hidden_layers")
    num_heads = _size(hf_config, "num_attention_heads")
    vocab = _size(hf_config, "vocab_size")
    num_kv_heads = hf_config.get("num_key_value_heads") or num_heads
    head_dim = hf_config.get("head_dim") or hidden // num_heads
    q_dim, kv_dim = num_heads * head_dim, num_kv_heads * head_dim
    per_layer = hidden * (q_dim + 2 * kv_dim) + q_dim * hidden + 3 * hidden * ffn
    num_matmul_params = num_layers * per_layer + vocab * hidden
    embedding = 0 if hf_config.get("tie_word_embeddings", False) else vocab * hidden
    norms = (2 * num_layers + 1) * hidden
    return ModelShape(num_matmul_params, num_layers, q_dim, num_matmul_params + embedding + norms)


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


def _size(hf_config: Mapping[str, Any], key: str) -> int:
    value = hf_config.get(key)
    if not isinstance(value, int) or value <= 0:
        raise ModelError(
            f"`{key}` of the model's config.json must be a positive integer, but is {value!r} "
            "instead. Use a Llama-like model, or read tokens per second instead of MFU."
        )
    return value
