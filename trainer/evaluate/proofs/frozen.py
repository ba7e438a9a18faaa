"""Proofs that an adapter begins as its base and never moves it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch

from trainer.data.pack.collate import collate
from trainer.data.types import Pack
from trainer.engine.policy import Policy
from trainer.errors import SelfCheckError
from trainer.evaluate.proofs.called import anywhere
from trainer.evaluate.proofs.fingerprint import difference, take_fingerprint
from trainer.model.flow import shaking
from trainer.model.tune.adapted import adapted, loud_factors
from trainer.model.tune.adapters import adapter_off, frozen_checksum
from trainer.model.tune.prompt import virtual_shifted

NOISE = 4.0
"""Times the rounding that was measured, up to which a difference is rounding, as in agreement.py."""


def check_silent(policy: Policy, tokens: np.ndarray) -> float:
    """Compare the model's logits with the adapter on and off, before the first step. Collective: every rank.

    Beside a linear layer an adapter adds exact zeros, and nothing may move. LoRA on experts makes their tensor anew,
    base and product of factors added up: the same numbers at another address, for which a library may add up in another
    order (on a CPU tensors of a file begin anywhere, new ones at a multiple of 64 bytes). So where a model has such
    tensors its factors must make exact zeros, and logits may differ by rounding, measured on this model in its type:
    by moving what the embeddings give by one unit in the last place.

    Raises:
        SelfCheckError: They differ: the run would not begin at its base.
    """
    moved = moved_by_adapter(policy, tokens)
    allowed = 0.0
    if anywhere(policy.mesh, moved != 0) and adapted(policy.module)[1] and not _adds_anything(policy):
        with adapter_off(policy.module), shaking(policy.module):
            shaken = take_fingerprint(policy, tokens)
        with adapter_off(policy.module):
            allowed = NOISE * difference(take_fingerprint(policy, tokens).logits_KV, shaken.logits_KV)
    if not moved <= allowed:
        raise SelfCheckError(
            "The adapter must leave the base's logits as they are before the first step, but moves them by "
            f"{moved:.1e} of their spread (allowed: {allowed:.1e}). Set tune.init=default, or report this model."
        )
    return moved


def moved_by_adapter(policy: Policy, tokens: np.ndarray) -> float:
    """Return how far the adapter moves the base's logits, as a share of their spread. Collective: every rank."""
    on = take_fingerprint(policy, tokens)
    with adapter_off(policy.module):
        off = take_fingerprint(policy, tokens)
    return difference(off.logits_KV, on.logits_KV)


def _adds_anything(policy: Policy) -> bool:
    """Tell whether LoRA's factors make anything but exact zeros: one of each pair must be 0. Collective: every rank."""
    own = loud_factors(policy.module)
    loud = policy.mesh.sum([float(is_loud) for is_loud in own.values()])
    owners = Counter(name.partition(".lora_")[0] for name, count in zip(own, loud, strict=True) if count)
    return any(count > 1 for count in owners.values())


def check_heard(policy: Policy, tokens: np.ndarray) -> float:
    """Return how far other virtual tokens move the logits of the document they move least, in a pack of three.

    Virtual tokens differ from the base by construction, so the equality that `check_silent` proves of other adapters
    cannot hold; that every document sees them takes its place. Exactly 0 for one that does not. Collective: every rank.

    Raises:
        SelfCheckError: A document of the pack does not see them.
    """
    lengths = np.full(3, len(tokens) // 3)
    lengths[-1] += len(tokens) % 3
    pack = Pack(tokens=tokens, supervised=np.ones(len(tokens), dtype=bool), lengths=lengths.tolist())
    micro = collate([pack], [0], len(tokens), 0)
    with policy.evaluating():
        as_they_are = torch.split(policy.logits(micro).float(), lengths.tolist())
        with virtual_shifted(policy.module):
            others = torch.split(policy.logits(micro).float(), lengths.tolist())
    moved = min(difference(one_TV, other_TV) for one_TV, other_TV in zip(as_they_are, others, strict=True))
    if not moved > 0:
        raise SelfCheckError(
            "Every document of a pack must see the virtual tokens, but those of one do not move its logits. Set "
            "model.attention=sdpa, or report this model."
        )
    return moved


class FrozenCheck:
    """Remembers the bits of what does not train, and compares."""

    def __init__(self, policy: Policy) -> None:
        """Take the checksum of what this rank holds."""
        self._policy = policy
        self._before = frozen_checksum(self._policy.module)

    def check(self) -> None:
        """Compare again. Collective: every rank.

        Raises:
            SelfCheckError: A frozen parameter is not what it was, on any rank.
        """
        moved = self._policy.mesh.sum([float(frozen_checksum(self._policy.module) != self._before)])[0]
        if moved:
            raise SelfCheckError(
                f"Frozen parameters must stay as they were loaded, but changed on {round(moved)} of "
                f"{self._policy.mesh.num_ranks} ranks. Nothing was saved; memory or a kernel is faulty."
            )
