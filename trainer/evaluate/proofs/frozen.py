"""Proofs that an adapter begins as its base and never moves it."""

from __future__ import annotations

import numpy as np

from trainer.data.pack.collate import collate
from trainer.data.types import Pack
from trainer.dist.group import Group
from trainer.engine.engine import Engine
from trainer.engine.inputs import model_inputs
from trainer.errors import SelfCheckError
from trainer.evaluate.proofs.fingerprint import difference, take_fingerprint
from trainer.model.tune.adapters import adapter_off, frozen_checksum
from trainer.model.tune.prompt import virtual_shifted


def check_silent(engine: Engine, tokens: np.ndarray, group: Group, flash: bool) -> float:
    """Compare the model's logits with the adapter on and off, before the first step. Collective: every rank.

    Raises:
        SelfCheckError: They differ: the run would not begin at its base.
    """
    on = take_fingerprint(engine, tokens, group, flash)
    with adapter_off(engine.module):
        off = take_fingerprint(engine, tokens, group, flash)
    moved = difference(off.logits_KV, on.logits_KV)
    if moved != 0:
        raise SelfCheckError(
            "The adapter must leave the base's logits as they are before the first step, but moves them by "
            f"{moved:.1e} of their spread. Set tune.init=default, or report this model."
        )
    return moved


def check_heard(engine: Engine, tokens: np.ndarray, group: Group) -> float:
    """Return how far other virtual tokens move the logits of the document they move least, in a pack of three.

    Virtual tokens differ from the base by construction, so the equality that `check_silent` proves of other adapters
    cannot hold; that every document sees them takes its place. Exactly 0 for one that does not. Collective: every rank.

    Raises:
        SelfCheckError: A document of the pack does not see them.
    """
    lengths = np.full(3, len(tokens) // 3)
    lengths[-1] += len(tokens) % 3
    pack = Pack(tokens=tokens, supervised=np.ones(len(tokens), dtype=bool), lengths=lengths.tolist())
    inputs = model_inputs(collate([pack], [0], len(tokens), 0), group.device, False)
    with engine.evaluating():
        as_they_are = engine.forward(**inputs)[0].float().split(lengths.tolist())
        with virtual_shifted(engine.module):
            others = engine.forward(**inputs)[0].float().split(lengths.tolist())
    moved = min(difference(one_TV, other_TV) for one_TV, other_TV in zip(as_they_are, others, strict=True))
    if not moved > 0:
        raise SelfCheckError(
            "Every document of a pack must see the virtual tokens, but those of one do not move its logits. Set "
            "model.attention=sdpa, or report this model."
        )
    return moved


class FrozenCheck:
    """Remembers the bits of what does not train, and compares."""

    def __init__(self, engine: Engine) -> None:
        """Take the checksum of what this rank holds."""
        self._module = engine.module
        self._before = frozen_checksum(self._module)

    def check(self, group: Group) -> None:
        """Compare again. Collective: every rank.

        Raises:
            SelfCheckError: A frozen parameter is not what it was, on any rank.
        """
        moved = group.sum([float(frozen_checksum(self._module) != self._before)])[0]
        if moved:
            raise SelfCheckError(
                f"Frozen parameters must stay as they were loaded, but changed on {round(moved)} of "
                f"{group.world_size} ranks. Nothing was saved; memory or a kernel is faulty."
            )
