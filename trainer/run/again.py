"""A step that is done again and must come out the same: hardware that computes wrongly without a sign does not.

Source: Dixit et al. 2021, Silent Data Corruptions at Scale (arXiv:2102.11245).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from trainer.data.pack.collate import MicroBatch
from trainer.dist.progress import PROGRESS
from trainer.engine.policy import Policy
from trainer.errors import SelfCheckError
from trainer.mix.loader import StepBatch
from trainer.model.flow import EMBEDDINGS, early_parameters, recomputing, watching
from trainer.objective.contract import Objective, Sums
from trainer.run.step import loss_of

LOSS = "the loss"
CHUNK = 2**22
"""Numbers of a gradient that are looked at together, 32 MB of them."""
_AS_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def check_again(policy: Policy, objective: Objective, batch: StepBatch, step: int) -> None:
    """Take every micro-batch of a step forward and backward twice and compare loss and gradients bit for bit.

    The loss is the objective's, with the routers' own. Below ZeRO-3 the gradients are those of all that trains; at
    ZeRO-3, where a rank holds no whole one, those of what flows into each layer and of the first layer's parameters.
    Without dropout. Sums over ranks and the update are not done again. Nothing is kept: no gradient, no number that was
    drawn, no count. Collective: every rank.

    Raises:
        SelfCheckError: They differ; names the ranks.
    """
    objective.begin(policy, batch)
    counts = objective.counts(batch)
    differing: list[str] = []
    for number, micro in enumerate(batch.micro_batches, start=1):
        first, second = (_bits(policy, objective, batch, micro, counts) for _ in range(2))
        differing += [
            f"{name} of micro-batch {number}" for name, bits in first.items() if second.get(name) != bits
        ]
        PROGRESS.mark()
    found: list[list[str]] = policy.mesh.gather(differing)
    wrong = {rank: names for rank, names in enumerate(found) if names}
    if wrong:
        ranks = ", ".join(f"rank {rank} ({', '.join(names[:3])})" for rank, names in wrong.items())
        raise SelfCheckError(
            f"A step must come out the same when it is done again, but step {step} differs on {ranks} instead: the "
            "GPU, its memory or the processor computes wrongly. Leave that node out (cluster.exclude), and go on from "
            "the last checkpoint."
        )


def _bits(
    policy: Policy, objective: Objective, batch: StepBatch, micro: MicroBatch, counts: Mapping[str, float]
) -> dict[str, int]:
    """Go forward and backward; return a checksum of the loss and of each gradient, by name. Collective at ZeRO-3."""
    found: dict[str, Tensor] = {}

    def note(name: str, gradient: Tensor) -> None:
        found[name] = _checksum(gradient)

    def note_and_drop(name: str, gradient: Tensor) -> Tensor:
        note(name, gradient)
        return gradient.new_zeros(()).expand_as(
            gradient
        )  # so that gradients of all parameters are not there at once

    devices = [policy.device] if policy.device.type == "cuda" else []
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices))
        policy = stack.enter_context(policy.differentiating())
        module, is_whole = policy.module, policy.engine.stage < 3
        stack.enter_context(recomputing(module))
        trained = dict(module.named_parameters()) if is_whole else early_parameters(module)
        leaves: dict[str, Tensor] = {name: one for name, one in trained.items() if one.requires_grad}
        with contextlib.ExitStack() as forward:
            places = {} if is_whole else forward.enter_context(watching(cast(Any, module).lm))
            parts = objective.terms(policy, micro, Sums(objective.sum_names, policy.device))
        loss = loss_of(parts, counts, policy, len(batch.micro_batches))
        if EMBEDDINGS in places:
            leaves[EMBEDDINGS] = places[EMBEDDINGS]
        for name, tensor in {**places, **leaves}.items():
            hook = note_and_drop if name in leaves else note
            stack.enter_context(_hooked(tensor, functools.partial(hook, name)))
        if loss.requires_grad and leaves:
            torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    names = [LOSS, *found]
    return dict(zip(names, torch.stack([_checksum(loss.detach()), *found.values()]).tolist(), strict=True))


@contextlib.contextmanager
def _hooked(tensor: Tensor, hook: Any) -> Iterator[None]:
    handle = tensor.register_hook(hook)  # type: ignore[no-untyped-call, unused-ignore]
    try:
        yield
    finally:
        handle.remove()


def _checksum(numbers: Tensor) -> Tensor:
    """Return the sum of the bit patterns of numbers, int64: one flipped bit changes it."""
    pieces = torch.split(numbers.reshape(-1), CHUNK)
    patterns = _AS_INTEGERS[numbers.element_size()]
    sums = [piece.contiguous().view(patterns).sum(dtype=torch.int64) for piece in pieces]
    return torch.stack(sums).sum() if sums else torch.zeros((), dtype=torch.int64, device=numbers.device)
