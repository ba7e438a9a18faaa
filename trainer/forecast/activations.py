"""Activations that a decoder layer keeps for backward, in bytes a token. Pure.

Counted over the tensors that backward reads. With flash attention and Liger's norms and gated MLP, Llama-3-8B
keeps 4 x 4,096 + 2 x 4,096 + 2 x 1,024 + 3 x 14,336 = 69,632 elements, 139 KB a token and layer. With LoRA a gated MLP
in one keeps 14,336 fewer (model/tune/gated.py); that the model has one is known only when it is loaded, so this counts
them, and the forecast of such a run is too high by 28 KB a token and layer.

Source: autograd of the fused kernels (Liger keeps a norm's input and the gate and up products, flash attention keeps
q, k, v, its output and one fp32 number a head); ZeRO-2 at 8,192 tokens with none recomputed (benchmarks/results).
"""

from __future__ import annotations

from trainer.forecast.shapes import DecoderShape


def layer_bytes(shape: DecoderShape, element_bytes: int, is_flash: bool, is_fused: bool) -> float:
    """Return what one layer keeps of a token, its input in.

    Without fused kernels transformers' norms keep an fp32 copy beside the result, and the gated MLP keeps the
    activation too. SDPA with a mask repeats k and v to all heads. Both are counted from the source, not measured.
    """
    hidden, q, kv = shape.hidden_size, shape.q_dim, shape.kv_dim
    num_norms = 4 if shape.has_post_norms else 2
    elements: float = 2 * num_norms * hidden  # input and result of each norm
    elements += 2 * q + 2 * kv  # q, k, v and attention's output
    elements += q + kv if shape.has_qk_norm else 0
    elements += 3 * shape.ffn_width + shape.routed_copies * hidden
    if not is_flash:
        elements += 2 * (q - kv)
    extra = 4.0 * shape.num_heads  # softmax statistics
    if not is_fused:
        normed = num_norms * hidden + (q + kv if shape.has_qk_norm else 0)
        extra += 4 * normed
        elements += shape.ffn_width
    return elements * element_bytes + extra


def mask_bytes(micro_batch_size: int, seq_len: int, is_flash: bool, element_bytes: int) -> float:
    """Return the bias that SDPA makes of the block mask in every layer; flash attention has none."""
    return 0.0 if is_flash else float(micro_batch_size * seq_len * seq_len * element_bytes)


def score_bytes(micro_batch_size: int, seq_len: int, num_heads: int, element_bytes: int) -> float:
    """Return what a layer of eager attention keeps of its scores: their softmax in fp32, and that in the run's dtype.

    Counted from the source of transformers (eager_attention_forward), not measured. In fp32 both are one tensor.
    """
    kept = 4 if element_bytes == 4 else 4 + element_bytes
    return float(micro_batch_size * num_heads * seq_len * seq_len * kept)


def checkpoint_bytes(shape: DecoderShape, element_bytes: int) -> float:
    """Return what a recomputed layer keeps of a token: its input."""
    return shape.hidden_size * element_bytes


def layer_backward_bytes(shape: DecoderShape, element_bytes: int) -> float:
    """Return the gradients that exist at once in a layer's backward, a token: MLP product and three hidden states."""
    return (shape.ffn_width + 3 * shape.hidden_size) * element_bytes
