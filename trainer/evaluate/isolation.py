"""Prove on the loaded model that documents in a pack do not see each other.

Three documents in one pack; the middle one is changed. The logits of the other two must not move, and
those of the middle one must, or the probe itself is broken.

Source: contaminated packs were shipped unnoticed elsewhere (TRL #3067, ms-swift #4736, torchtune #875).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from trainer.data.collate import MicroBatch, collate
from trainer.data.types import Pack
from trainer.dist.group import Group
from trainer.engine.build import Engine
from trainer.errors import SelfCheckError
from trainer.step import model_inputs

TOLERANCE = 2.0**-9
"""Largest allowed movement as a share of the largest logit: half a unit in the last place of bf16."""


@dataclass(frozen=True, slots=True)
class Isolation:
    """What the probe found."""

    moved: float
    """How far the other documents' logits moved, as a share of the largest logit."""
    forward_s: float
    """Seconds of its second forward pass."""
    num_tokens: int
    """Tokens of a pass."""


def check_isolation(engine: Engine, vocab_size: int, seq_len: int, group: Group, flash: bool) -> Isolation:
    """Change a document of a pack and look at the others.

    Collective: every rank.

    Raises:
        SelfCheckError: Documents see each other, or the probe cannot tell.
    """
    num_tokens = min(seq_len, 192)
    lengths = [num_tokens // 3, num_tokens // 3, num_tokens - 2 * (num_tokens // 3)]
    tokens = np.random.default_rng(0).integers(0, vocab_size, num_tokens)
    middle = slice(lengths[0], lengths[0] + lengths[1])
    changed = tokens.copy()
    changed[middle] = (changed[middle] + 1) % vocab_size
    before = _logits(engine, tokens, lengths, group, flash)
    started = time.perf_counter()
    after = _logits(engine, changed, lengths, group, flash)
    if group.device.type == "cuda":
        torch.cuda.synchronize(group.device)
    forward_s = time.perf_counter() - started
    moved = (before - after).abs()
    inside = float(moved[middle].max())
    outside = torch.cat([moved[: middle.start], moved[middle.stop :]])
    share = float(outside.max()) / max(float(before.abs().max()), 1e-30)
    if inside == 0.0:
        raise SelfCheckError(
            "The isolation probe changed a document and its own logits did not move: the model ignores "
            "its input. Check the weights and model.attention."
        )
    if not share <= TOLERANCE:
        raise SelfCheckError(
            f"Documents in one pack see each other: changing one moved the logits of others by {share:.2e} "
            f"of the largest logit (allowed: {TOLERANCE:.1e}). Set another model.attention; this "
            "one does not separate packed documents for this model."
        )
    return Isolation(share, forward_s, num_tokens)


def _logits(
    engine: Engine, tokens: np.ndarray, lengths: list[int], group: Group, flash: bool
) -> torch.Tensor:
    """Return logits [T, V] in float32 of one pack."""
    pack = Pack(tokens=tokens, supervised=np.ones(len(tokens), dtype=bool), lengths=lengths)
    micro: MicroBatch = collate([pack], [0], len(tokens), 0)
    with engine.evaluating():
        logits = engine.forward(**model_inputs(micro, group.device, flash))
    return torch.as_tensor(logits.reshape(len(tokens), -1)).float()
