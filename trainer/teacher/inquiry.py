"""Ask the base model what it says of replay packs and write it down, a part by every rank.

Shapes: Q supervised positions of a pack, K tokens of a position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from trainer.data.pack.refs import PackRef, read_batch, spread
from trainer.data.store.store import SplitStore
from trainer.engine.policy import Policy
from trainer.errors import DataError
from trainer.teacher.reference import ReferenceWriter


def write_reference(
    policy: Policy,
    stores: Sequence[SplitStore],
    packs: Mapping[int, Sequence[int]],
    num_top: int,
    micro_batch_size: int,
    pad_id: int,
    folder: Path,
    on_batch: Callable[[int], None],
) -> None:
    """Run the model over packs, by number of the source, and write its top tokens under a folder.

    Collective: every rank. One that cannot write goes on with the others and says so at the end, because they
    would wait for it for ever.

    Args:
        on_batch: Told how many packs all ranks have done.
    Raises:
        DataError: A rank could not write its part.
    """
    refs = [PackRef(source, pack, 0) for source in packs for pack in packs[source]]
    places = {source: place for place, source in enumerate(packs)}
    mesh = policy.mesh
    part = _Part(folder, mesh.rank)
    with policy.evaluating():
        for number, batch in enumerate(spread(refs, mesh.data, micro_batch_size)):
            micro = read_batch(stores, batch, pad_id)
            by_pack = (
                torch.split(answer.cpu(), micro.num_targets_B) for answer in policy.top(micro, num_top)
            )
            for ref, ids, log_probs in zip(batch, *by_pack, strict=True):
                if ref.source in places:  # and no filler
                    part.add(places[ref.source], ref.pack, ids, log_probs)
            on_batch(min((number + 1) * micro_batch_size * mesh.data.size, len(refs)))
    part.close()
    problems = [problem for problem in mesh.gather(part.problem) if problem]
    if problems:
        raise DataError(
            "`data.cache_dir` must be a folder with room that all ranks can write, but is not: "
            f"{problems[0]}. Set data.cache_dir to another one."
        )


class _Part:
    """A rank's part of the reference, which keeps the first error for the end."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._rank = rank
        self.problem = ""
        self._writer: ReferenceWriter | None = None
        with self._kept():
            self._writer = ReferenceWriter(folder, rank)

    def add(self, source: int, pack: int, ids_QK: Tensor, log_probs_QK: Tensor) -> None:
        if self._writer is not None and not self.problem:
            with self._kept():
                self._writer.add(source, pack, ids_QK.numpy(), log_probs_QK.numpy())

    def close(self) -> None:
        if self._writer is not None:
            with self._kept():
                self._writer.close()

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.problem = self.problem or f"rank {self._rank}: {error}"
