"""Activations that a decoder layer keeps for backward, in bytes a token. Pure.

Counted over the tensors that backward reads. With flash attention and Liger's norms and gated MLP, Llama-3-8B
keeps 4 x 4,096 + 2 x 4,096 + 2 x 1,024 + 3 x 14,336 = 69,632 elements, 139 KB a token and layer; a gated MLP that is
one function with its adapters 14,336 fewer (`Weights.gated_width`).

Source: autograd of the fused kernels (Liger keeps a norm's input and the gate and up products, flash attention keeps
q, k, v, its output and one fp32 number a head); ZeRO-2 at 8,192 tokens with none recomputed (benchmarks/results).
"""

from __future__ import annotations

from trainer.forecast.shapes import DecoderShape


def layer_bytes(
    shape: DecoderShape, element_bytes: int, is_flash: bool, is_fused: bool, trains_experts: bool = True
) -> float:
    """Return what one layer keeps of a token, its input in.

    Without fused kernels transformers' norms keep an fp32 copy beside the result, and the gated MLP keeps the
    activation too. SDPA with a mask repeats k and v to all heads. Both are counted from the source, not measured.

    Args:
        trains_experts: Experts of a mixture train, or adapters on them. If not, what goes into their matrices is not
            kept: the copies of a token for its experts, and the product of gate and up. Gate, activation and up are,
            and what comes out, which the weights of the choice have their gradient of.
    """
    hidden, q, kv = shape.hidden_size, shape.q_dim, shape.kv_dim
    num_norms = 4 if shape.has_post_norms else 2
    elements: float = 2 * num_norms * hidden  # input and result of each norm
    elements += 2 * q + 2 * kv  # q, k, v and attention's output
    elements += q + kv if shape.has_qk_norm else 0
    elements += 3 * shape.ffn_width + shape.routed_copies * hidden / (1 if trains_experts else 2)
    if not is_flash:
        elements += 2 * (q - kv)
    extra = 4.0 * shape.num_heads  # softmax statistics
    if not is_fused:
        normed = num_norms * hidden + (q + kv if shape.has_qk_norm else 0)
        extra += 4 * normed
    if shape.routed_copies:  # transformers computes experts: no kernel of a gated MLP does
        elements += shape.ffn_width if trains_experts else 0
    elif not is_fused:
        elements += shape.ffn_width
    return elements * element_bytes + extra


def mask_bytes(pairs: int, is_flash: bool, element_bytes: int) -> float:
    """Return the bias that SDPA makes of the block mask in every layer; flash attention has none.

    Args:
        pairs: Pairs of tokens of all packs of a micro-batch: packs x length x length.
    """
    return 0.0 if is_flash else float(pairs * element_bytes)


def score_bytes(shape: DecoderShape, pairs: int, element_bytes: int) -> float:
    """Return what eager attention keeps of a layer: a softmax in float32 and, where that is another, in the dtype."""
    return float(shape.num_heads * pairs * (4 + (element_bytes if element_bytes < 4 else 0)))


def score_backward_bytes(shape: DecoderShape, pairs: int, element_bytes: int) -> float:
    """Return the gradients of eager attention's scores that exist at once: of the softmax and of what it is of."""
    return float(shape.num_heads * pairs * (element_bytes + 4))


def checkpoint_bytes(shape: DecoderShape, element_bytes: int) -> float:
    """Return what a recomputed layer keeps of a token: its input."""
    return shape.hidden_size * element_bytes


def layer_backward_bytes(shape: DecoderShape, element_bytes: int) -> float:
    """Return the gradients that exist at once in a layer's backward, a token: MLP product and three hidden states."""
    return (shape.ffn_width + 3 * shape.hidden_size) * element_bytes


def bend_bytes(shape: DecoderShape, element_bytes: int) -> int:
    """Return the bytes beside each logit of a chunk that is compared with the base's where the model changes logits.

    Without the base the kernel changes them in place. With it (trainer/model/head/nll.py, bend.py) there are the
    changed ones in float32 and a copy that becomes their gradient; then what turns that back: two more in float32 of
    a cap, or of a scale alone the gradient in the logits' own type.
    """
    if shape.caps_logits:
        return 4 * 4
    return (2 * 4 + (element_bytes if element_bytes < 4 else 0)) if shape.scales_logits else 0


def log_prob_bytes(shape: DecoderShape, element_bytes: int) -> int:
    """Return the most bytes of each logit of a chunk whose log-probabilities are taken: no kernel writes over them.

    The logits, their copy in float32 and its log-softmax, 2 + 4 + 4; in float32 there is no copy, and a cap takes two
    more meanwhile. Counted in the code (trainer/model/head/log_probs.py); an H200 with LoRA of an 8B agrees.
    """
    if element_bytes < 4:
        return element_bytes + 2 * 4
    return 4 * 4 if shape.caps_logits else 2 * 4
