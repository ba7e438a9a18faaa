"""What a run should have consumed, worked out anew from its configuration and its stores, without a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trainer.data.pack.refs import PackRef
from trainer.data.store.store import SplitStore
from trainer.mix.loader import chain_digest, step_digest
from trainer.mix.plan import DataPlan


def consumed(
    plan: DataPlan, stores: Sequence[SplitStore], num_steps: int
) -> Iterator[tuple[int, str, list[PackRef]]]:
    """Yield after each step from the first: its number, the digest of all tokens so far, and the packs it drew."""
    digest = ""
    for step in range(num_steps):
        refs = plan.packs_of_step(step)
        digest = chain_digest(digest, step_digest(refs, stores))
        yield step + 1, digest, refs
