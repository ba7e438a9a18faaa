"""Ask a frozen model what it says of packs and write it down, a part by every rank.

Shapes: Q supervised positions of a pack, K tokens of a position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.data.pack.refs import PackRef, read_batch, spread
from trainer.data.store.store import SplitStore
from trainer.engine.policy import Policy
from trainer.errors import DataError
from trainer.model.head.comparison import Comparison
from trainer.teacher.reference import IDS, KINDS, ReferenceWriter


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of which frozen model."""

    base_digest: str
    dtype: str
    num_top: int
    """Most likely next tokens that are kept of a position."""
    micro_batch_size: int
    """Packs that a rank asks about at once."""
    pad_id: int = 0
    how: Comparison | None = None
    """What is to be compared; then the rest's mass is kept too."""
    precision: str = "fp16"
    """What log-probabilities are kept in."""
    who: str = "the base model"
    about: str = "replay"
    """Of which tokens."""
    room: str = "lower replay.kl.top or the replay ratio, or shorten the run"
    """What needs less room on a disk."""
    block_rows: int = 2**18
    """Supervised positions of a block, after which what was asked is kept for good: 100 MB at K = 64."""

    @property
    def bytes_per_token(self) -> int:
        """Return the bytes that are kept of a position."""
        size = KINDS[self.precision].itemsize
        return self.num_top * (IDS.itemsize + size) + (size if self.how is not None else 0)


def write_reference(
    policy: Policy,
    stores: Sequence[SplitStore],
    refs: Sequence[PackRef],
    places: Mapping[int, int],
    question: Question,
    folder: Path,
    on_batch: Callable[[int], None],
) -> None:
    """Run the model over packs, and write its top tokens under a folder.

    Collective: every rank. One that cannot write goes on with the others and says so at the end, because they
    would wait for it for ever.

    Args:
        places: Number of each source -> its place in the reference.
        on_batch: Told how many packs all ranks have done.
    Raises:
        DataError: A rank could not write its part.
    """
    mesh = policy.mesh
    part = _Part(folder, mesh.rank, KINDS[question.precision])
    size = question.micro_batch_size
    with policy.evaluating():
        for number, batch in enumerate(spread(refs, mesh.data, size)):
            micro = read_batch(stores, batch, question.pad_id)
            answers = policy.top(micro, question.num_top, question.how)
            by_pack = (torch.split(answer.cpu(), micro.num_targets_B) for answer in answers)
            for ref, ids, log_probs in zip(batch, *by_pack, strict=True):
                if ref.source in places:  # and no filler
                    part.add(places[ref.source], ref.pack, ids, log_probs)
            on_batch(min((number + 1) * size * mesh.data.size, len(refs)))
    part.close()
    problems = [problem for problem in mesh.gather(part.problem) if problem]
    if problems:
        raise DataError(
            "`data.cache_dir` must be a folder with room that all ranks can write, but is not: "
            f"{problems[0]}. Set data.cache_dir to another one."
        )


class _Part:
    """A rank's part of the reference, which keeps the first error for the end."""

    def __init__(self, folder: Path, rank: int, dtype: np.dtype[Any]) -> None:
        self._rank = rank
        self.problem = ""
        self._writer: ReferenceWriter | None = None
        with self._kept():
            self._writer = ReferenceWriter(folder, rank, dtype)

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
