"""Prove on the loaded model that documents in a pack do not see each other, in one row or in rows of their own.

Three documents in one pack; the middle one is changed. The logits of the other two must not move, and
those of the middle one must, or the probe itself is broken. Documents are longer than any window, chunk or
convolution of the model where packs are long enough for three such.

Source: contaminated packs were shipped unnoticed elsewhere (TRL #3067, ms-swift #4736, torchtune #875).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from trainer.data.pack.collate import MicroBatch, collate
from trainer.data.types import Pack
from trainer.engine.policy import Policy
from trainer.errors import SelfCheckError
from trainer.evaluate.proofs.called import BeforePass, anywhere, at_once, called

TOLERANCE = 2.0**-9
"""Largest allowed movement as a share of the largest logit: half a unit in the last place of bf16."""


APART = "Set data.packing=none, which gives every document a row of its own, and no packing of a source."
NUM_TOKENS = 192
HELD_UP_S = 2.0
"""A pass that was longer is not timed again: what may hold one up is short beside it."""
NUM_KEPT = 64
"""Positions of a document whose logits are looked at: half of them at its beginning, half spread out."""


@dataclass(frozen=True, slots=True)
class ForwardTime:
    """How long a forward pass takes, not the first, which loads; of a short one the faster of two."""

    seconds: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Isolation:
    """What the probe found."""

    moved: float
    """How far the other documents' logits moved, as a share of the largest logit."""
    forward: ForwardTime


def isolation_work(seq_len: int, window: int) -> int:
    """Return the tokens that `check_isolation` sends through a model that is slow."""
    return 2 * _num_tokens(seq_len, window)


def _num_tokens(seq_len: int, window: int) -> int:
    return min(seq_len, max(NUM_TOKENS, 3 * (window + 1)))


def check_isolation(
    policy: Policy, vocab_size: int, seq_len: int, window: int = 0, before_pass: BeforePass = at_once
) -> Isolation:
    """Change a document of a pack and look at the others.

    Collective: every rank.

    Args:
        window: The longest window, chunk or convolution of the model in tokens.
    Raises:
        SelfCheckError: Documents see each other, or the probe cannot tell.
    """
    num_tokens = _num_tokens(seq_len, window)
    lengths, tokens = _documents(num_tokens, vocab_size)
    middle = slice(lengths[0], lengths[0] + lengths[1])
    changed = tokens.copy()
    changed[middle] = (changed[middle] + 1) % vocab_size
    kept_K = _kept(lengths)
    before_pass(num_tokens)
    before = _logits(policy, tokens, lengths, kept_K)
    after, forward = _timed(policy, changed, lengths, kept_K, before_pass)
    moved = (before - after).abs().amax(-1).cpu()
    is_inside_K = (kept_K >= middle.start) & (kept_K < middle.stop)
    inside = float(moved[is_inside_K].max())
    share = float(moved[~is_inside_K].max()) / max(float(before.abs().max()), 1e-30)
    if inside == 0.0:
        raise SelfCheckError(
            "The isolation probe changed a document and its own logits did not move: the model ignores "
            "its input. Check the weights and model.attention."
        )
    if not share <= TOLERANCE:
        where = "of one batch" if policy.in_rows else "in one pack"
        fix = "Choose another model." if policy.in_rows else APART
        raise SelfCheckError(
            f"Documents {where} see each other: changing one moved the logits of others by {share:.2e} "
            f"of the largest logit (allowed: {TOLERANCE:.1e}). Layers of this model carry something over from one "
            f"document to the next. {fix}"
        )
    return Isolation(share, forward)


def time_forward(
    policy: Policy, vocab_size: int, seq_len: int, before_pass: BeforePass = at_once
) -> ForwardTime:
    """Time a forward pass of a model that has run before. Collective: every rank."""
    lengths, tokens = _documents(_num_tokens(seq_len, 0), vocab_size)
    return _timed(policy, tokens, lengths, _kept(lengths), before_pass)[1]


def _documents(num_tokens: int, vocab_size: int) -> tuple[list[int], np.ndarray]:
    """Return the lengths of three documents, and their tokens one behind the other."""
    lengths = [num_tokens // 3, num_tokens // 3, num_tokens - 2 * (num_tokens // 3)]
    return lengths, np.random.default_rng(0).integers(0, vocab_size, num_tokens)


def _timed(
    policy: Policy, tokens: np.ndarray, lengths: list[int], kept_K: torch.Tensor, before_pass: BeforePass
) -> tuple[torch.Tensor, ForwardTime]:
    """Return logits [K, V] of one pack, and how long they take."""
    times: list[float] = []
    while not times or (len(times) == 1 and anywhere(policy.mesh, times[0] < HELD_UP_S)):
        before_pass(len(tokens))
        started = time.perf_counter()
        logits_KV = _logits(policy, tokens, lengths, kept_K)
        if policy.device.type == "cuda":
            torch.cuda.synchronize(policy.device)
        times.append(time.perf_counter() - started)
    return logits_KV, ForwardTime(min(times), len(tokens))


def _kept(lengths: list[int]) -> torch.Tensor:
    """Return the positions to look at; all where documents are short."""
    kept: list[torch.Tensor] = []
    start = 0
    for length in lengths:
        first = torch.arange(min(length, NUM_KEPT // 2))
        kept += [start + first, start + torch.linspace(0, length - 1, NUM_KEPT // 2).long()]
        start += length
    return torch.from_numpy(np.unique(torch.cat(kept).numpy()))


def _logits(policy: Policy, tokens: np.ndarray, lengths: list[int], kept_K: torch.Tensor) -> torch.Tensor:
    """Return logits [K, V] in float32 of one pack.

    Raises:
        SelfCheckError: The model cannot be called so.
    """
    pack = Pack(tokens=tokens, supervised=np.ones(len(tokens), dtype=bool), lengths=lengths)
    micro: MicroBatch = collate([pack], [0], policy.row_length(len(tokens)), 0)
    fix = (
        "Name another model.path: this architecture is not supported yet."
        if policy.in_rows
        else f"It may not take masks. {APART}"
    )
    with policy.evaluating(), called("The body of the model", fix):
        return policy.logits(micro, kept_K.to(policy.device)).float()
