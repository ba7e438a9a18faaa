"""Prove on the loaded model that what the loss is made from is what the model itself computes.

The objective goes round the model's own forward: it calls the body and takes the loss in the head. An architecture that
changes logits after the head, or whose body is another than supposed, would train as another model without a sign.
Likewise a mask without the model's windows. Both are compared with the model's own forward, in the type and on the
device of the run.

Shapes: T tokens of a document, K chosen positions of it, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.data.pack.collate import collate
from trainer.data.types import Pack
from trainer.engine.policy import Policy
from trainer.errors import SelfCheckError
from trainer.evaluate.proofs.called import BeforePass, anywhere, at_once, called
from trainer.model.flow import shaking
from trainer.model.head.ask import Logits, OwnLogits
from trainer.model.head.head import head_of
from trainer.model.head.nll import Nll
from trainer.model.masks import reach
from trainer.model.tune.prompt import virtual_off

_LOG = logging.getLogger(__name__)

NUM_TOKENS = 192
"""Tokens of a probe of a model without windows."""
HEAD_TOKENS = 64
"""Tokens of the document whose logits and loss are compared: what the head does to one, it does to all."""
NUM_KEPT = 96
"""Positions of a long document whose logits are compared."""
NOISE = 4.0
"""Times the rounding that was measured, up to which a difference is rounding. Between two kernels of attention it is
measured by moving what the embeddings give by one unit in the last place; it grows with the number of layers: 32 of
random weights in bf16 differ by 4.5e-2."""
HEAD_FLOOR = {torch.float64: 1e-9, torch.float32: 1e-6}
"""Largest difference of logits allowed anyway, as a share of a position's largest: one operation is another. Half a
unit in the last place for other types, four times that where logits are scaled and capped in them."""
MASK_FLOOR = {torch.float64: 1e-7, torch.float32: 1e-4}
"""The same between two kernels of attention, through all layers. 2^-6 for other types."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far our logits and losses are from the model's own: median over positions."""

    logits: float
    """As a share of the largest logit of a position."""
    loss: float
    """In nats."""


def head_work(seq_len: int) -> int:
    """Return the tokens that `check_head` sends through the model."""
    return 3 * min(seq_len, HEAD_TOKENS)


def check_head(policy: Policy, hf_config: Any, seq_len: int, before_pass: BeforePass = at_once) -> Agreement:
    """Compare logits and loss of one short document with the model's own forward. Collective: every rank.

    Without virtual tokens, which are no part of the model. How far two calls of the model's own forward are apart is
    measured only where more is found than rounding of any model.

    Raises:
        SelfCheckError: They differ by more than rounding, or the model's own forward cannot be called.
    """
    num_tokens = min(seq_len, HEAD_TOKENS)
    tokens_1T = probe_ids(num_tokens, hf_config.get_text_config().vocab_size, policy.device)
    labels_1T = torch.cat([tokens_1T[:, 1:], tokens_1T[:, :1]], dim=1)
    alone = alone_inputs(tokens_1T)

    def own() -> Tensor:
        before_pass(num_tokens)
        logits_TV = logits_of_call(
            lambda: policy.answer_raw(OwnLogits(), input_ids=tokens_1T), "The model's own forward"
        )
        return working(logits_TV)

    with policy.evaluating(), virtual_off(policy.module):
        own_TV = own()
        before_pass(num_tokens)
        ours_TV = logits_of_call(lambda: policy.answer_raw(Logits(), **alone))
        before_pass(num_tokens)
        nll_T = policy.answer_raw(Nll(labels_1T[0]), **alone)[1]
        dtype, ours_TV = ours_TV.dtype, working(ours_TV)
        own_nll_T = torch.nn.functional.cross_entropy(own_TV, labels_1T[0], reduction="none")
        found = typical(apart_of(own_TV, ours_TV))
        loss = typical((own_nll_T - nll_T.to(own_nll_T.dtype)).abs())
        of_loss = max(1.0, typical(own_TV.abs().amax(-1))) * 4
        is_bent = not head_of(policy.module).bend.is_none
        allowed = HEAD_FLOOR.get(dtype, 2.0**-7 if is_bent else 2.0**-9)
        if anywhere(policy.mesh, not (found <= allowed and loss <= allowed * of_loss)):
            allowed = max(NOISE * typical(apart_of(own_TV, own())), allowed)
    if not bool(own_TV.isfinite().all()):
        _LOG.warning("The model's logits are not finite: that its loss is made from them cannot be proved.")
        return Agreement(float("nan"), float("nan"))
    if not found <= allowed:
        raise SelfCheckError(
            f"The model's own logits must be those that the loss is computed from, but differ by {found:.1e} of the "
            f"largest instead (allowed: {allowed:.1e}). {_suspect(own_TV, ours_TV, hf_config)} This architecture is "
            "not supported yet."
        )
    allowed_loss = allowed * of_loss
    if not loss <= allowed_loss:
        raise SelfCheckError(
            f"The loss must be the cross-entropy of the model's own logits, but is {loss:.1e} nats off instead "
            f"(allowed: {allowed_loss:.1e}). A kernel of the head is wrong on this device: report it, with the "
            "versions of torch and triton."
        )
    _LOG.info(
        "The loss is made from the model's own logits: apart by %.1e of the largest, the loss by %.1e nats.",
        found,
        loss,
    )
    return Agreement(found, loss)


def _packed_lengths(hf_config: Any, seq_len: int) -> tuple[int, int, int]:
    """Return the model's longest window, tokens of the document before, and of the one that is compared."""
    window = reach(hf_config, seq_len - 8)
    before = max(1, min(32, seq_len - window - 16 if window else seq_len // 8))
    return window, before, min(seq_len - before, max(NUM_TOKENS, window + 64) if window else NUM_TOKENS)


def packing_work(hf_config: Any, seq_len: int) -> int:
    """Return the tokens that `check_packing` sends through the model."""
    _, before, num_tokens = _packed_lengths(hf_config, seq_len)
    return before + 2 * num_tokens


def check_packing(policy: Policy, hf_config: Any, seq_len: int, before_pass: BeforePass = at_once) -> float:
    """Compare a document behind another in a pack with the same alone under the model's own masks.

    The document is longer than any window of the model where packs of this run are. What differs before the window
    ends is rounding of another kernel; beyond it nothing else may differ. Collective: every rank.

    Raises:
        SelfCheckError: The document is not what it is alone.
    """
    window, before, num_tokens = _packed_lengths(hf_config, seq_len)
    is_beyond = window > 0
    tokens_1T = probe_ids(before + num_tokens, hf_config.get_text_config().vocab_size, policy.device)
    lengths = [before, num_tokens]
    pack = Pack(tokens_1T[0].cpu().numpy(), np.ones(sum(lengths), dtype=bool), lengths)
    micro = collate([pack], [0], policy.row_length(sum(lengths)), 0)
    kept = np.linspace(0, num_tokens - 1, min(num_tokens, NUM_KEPT)).astype(np.int64)
    if is_beyond:
        kept = np.union1d(kept, np.arange(window, num_tokens))
    kept_K = torch.from_numpy(kept).to(policy.device)

    def alone() -> Tensor:
        before_pass(num_tokens)
        return logits_of_call(
            lambda: policy.answer_raw(Logits(kept_K), **alone_inputs(tokens_1T[:, before:]))
        )

    with policy.evaluating(), virtual_off(policy.module):
        before_pass(before + num_tokens)
        packed_KV = logits_of_call(lambda: policy.logits(micro, kept_K + before))
        alone_KV = alone()
        apart_K = apart_of(working(alone_KV), working(packed_KV))
        is_far_K = kept_K >= window if is_beyond else torch.zeros_like(kept_K, dtype=torch.bool)
        near = typical(apart_K[~is_far_K])
        bound = allowed_apart(policy, near, alone_KV, alone)
    if not near <= bound:
        raise SelfCheckError(
            f"A document in a pack must be what it is alone, but its logits differ by {near:.1e} of the largest "
            f"instead (allowed: {bound:.1e}). {_layers(hf_config)} Set data.packing=none; where rounding alone may "
            "do that (many layers of experts in bf16), set train.isolation_probe=false."
        )
    if not is_beyond:
        return near
    floor = MASK_FLOOR.get(alone_KV.dtype, 2.0**-6)
    far, allowed = typical(apart_K[is_far_K]), max(NOISE * near, floor)
    if not far <= allowed:
        raise SelfCheckError(
            f"Layers must see no further than the model's window of {window} tokens, but beyond it logits differ by "
            f"{far:.1e} of the largest from the model's own instead (before it by {near:.1e}). {_layers(hf_config)} "
            f"Set data.seq_len={window} at most, or another model.attention."
        )
    return max(near, far)


def _row_tokens(hf_config: Any, seq_len: int) -> int:
    """Return the tokens of the document that `check_rows` compares."""
    window = reach(hf_config, 2 * seq_len // 5 - 64)
    return min(max(2 * seq_len // 5, 1), max(NUM_TOKENS, window + 64))


def rows_work(hf_config: Any, seq_len: int) -> int:
    """Return the tokens that `check_rows` sends through the model, padding among them."""
    num_tokens = _row_tokens(hf_config, seq_len)
    return 2 * (num_tokens + max(num_tokens // 2, 1)) + num_tokens


def check_rows(policy: Policy, hf_config: Any, seq_len: int, before_pass: BeforePass = at_once) -> float:
    """Compare a document beside a longer one, and so padded, with the same alone. Collective: every rank.

    It is longer than any window, chunk or convolution of the model that two of them in a pack can be longer than.

    Raises:
        SelfCheckError: The document is not what it is alone.
    """
    num_tokens = _row_tokens(hf_config, seq_len)
    lengths = [num_tokens, num_tokens + max(num_tokens // 2, 1)]
    tokens_1T = probe_ids(sum(lengths), hf_config.get_text_config().vocab_size, policy.device)
    pack = Pack(tokens_1T[0].cpu().numpy(), np.ones(sum(lengths), dtype=bool), lengths)
    micro = collate([pack], [0], sum(lengths), 0)
    kept_K = torch.linspace(0, num_tokens - 1, min(num_tokens, NUM_KEPT), device=policy.device).long()

    def alone() -> Tensor:
        before_pass(num_tokens)
        return logits_of_call(lambda: policy.answer_raw(Logits(kept_K), input_ids=tokens_1T[:, :num_tokens]))

    with policy.evaluating(), virtual_off(policy.module):
        before_pass(2 * max(lengths))
        beside_KV = logits_of_call(lambda: policy.logits(micro, kept_K))
        alone_KV = alone()
        apart = typical(apart_of(working(alone_KV), working(beside_KV)))
        allowed = allowed_apart(policy, apart, alone_KV, alone)
    if not apart <= allowed:
        raise SelfCheckError(
            f"A document must be what it is alone when padding stands behind it, but its logits differ by {apart:.1e} "
            f"of the largest instead (allowed: {allowed:.1e}). {_layers(hf_config)} Choose another model; where "
            "rounding alone may do that (many layers of experts in bf16), set train.isolation_probe=false."
        )
    return apart


def logits_of_call(call: Callable[[], Tensor], whose: str = "The body of the model") -> Tensor:
    """Return logits [., V] of one call.

    Raises:
        SelfCheckError: The model cannot be called so.
    """
    with called(whose):
        logits = call()
    return torch.as_tensor(logits).reshape(-1, logits.shape[-1])


def probe_ids(count: int, vocab_size: int, device: torch.device) -> Tensor:
    """Return as many token ids [1, T], always the same."""
    ids = np.random.default_rng(0).integers(0, vocab_size, count)
    return torch.from_numpy(ids)[None].to(device)


def alone_inputs(tokens_1T: Tensor) -> dict[str, Tensor]:
    """Return the inputs of one document, to which the model makes its own masks."""
    return {
        "input_ids": tokens_1T,
        "position_ids": torch.arange(tokens_1T.shape[1], device=tokens_1T.device)[None],
    }


def working(logits: Tensor) -> Tensor:
    """Return logits in float32, wider ones as they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def apart_of(own_TV: Tensor, other_TV: Tensor) -> Tensor:
    """Return the largest difference of each position as a share of its largest logit [T]; of all scores' largest."""
    largest = own_TV.abs().amax(-1) if own_TV.shape[-1] > 1 else own_TV.abs().max()
    return (own_TV - other_TV).abs().amax(-1) / largest.clamp(min=1e-30)


def typical(values: Tensor) -> float:
    """Return the median, which a token that rounding sends to another expert does not move; NaN if any is."""
    return float("nan") if values.isnan().any() else float(values.median())


def allowed_apart(policy: Policy, found: float, alone_KV: Tensor, alone: Callable[[], Tensor]) -> float:
    """Return up to where a difference is rounding, by that of a document whose every operation rounded anew.

    Measured only where more was found on any rank than what is allowed anyway. Collective: every rank.
    """
    floor = 4 * MASK_FLOOR.get(alone_KV.dtype, 2.0**-6)
    if not anywhere(policy.mesh, not found <= floor):
        return floor
    with shaking(policy.module):
        again_KV = alone()
    return max(floor, NOISE * typical(apart_of(working(alone_KV), working(again_KV))))


def _suspect(own_TV: Tensor, ours_TV: Tensor, hf_config: Any) -> str:
    """Say what the model seems to do to its logits, with the keys of its configuration that may tell."""
    config: Mapping[str, Any] = hf_config.get_text_config().to_dict()
    words = ("logit", "softcap", "lm_head", "head_multiplier", "output_multiplier", "mup")
    keys = [
        f"{key}={value}"
        for key, value in config.items()
        if any(word in key.lower() for word in words)
        and isinstance(value, float | int)
        and not isinstance(value, bool)
    ]
    named = f" (its configuration has {', '.join(keys)})" if keys else ""
    scale = float((own_TV * ours_TV).sum() / ours_TV.square().sum().clamp(min=1e-30))
    if typical(apart_of(own_TV, scale * ours_TV)) < 0.3 * typical(apart_of(own_TV, ours_TV)):
        return f"It seems to multiply them by {scale:.4g} after the output layer{named}."
    same_order = (own_TV.argsort(-1) == ours_TV.argsort(-1)).float().mean()
    if same_order > 0.9:
        return f"It seems to bend them after the output layer, as a soft cap does{named}."
    return f"It seems to compute something else between its layers and its output layer, or after it{named}."


def _layers(hf_config: Any) -> str:
    kinds = sorted(set(getattr(hf_config.get_text_config(), "layer_types", None) or ()))
    return (
        f"Its layers are of the kinds {', '.join(kinds)}."
        if kinds
        else "It has layers that are not plain attention."
    )
