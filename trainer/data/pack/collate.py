"""Turn packs into one micro-batch of arrays. Pure NumPy; knows no device.

Shapes: B packs of a micro-batch, T = data.seq_len, S isolated segments in all packs (padding is one), U units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer.data.types import Pack

IGNORE = -100
"""Label of a position without a supervised target (torch's convention)."""


@dataclass(slots=True)
class MicroBatch:
    """One micro-batch on the host.

    Shapes: tokens, labels, positions, segments [B, T] int64; cu_seq_lens [S + 1] int32 over B*T; units [S] int64.
    """

    tokens_BT: npt.NDArray[np.int64]
    labels_BT: npt.NDArray[np.int64]
    positions_BT: npt.NDArray[np.int64]
    segments_BT: npt.NDArray[np.int64]
    cu_seq_lens: npt.NDArray[np.int32]
    max_seq_len: int
    num_targets_B: list[int]
    source_B: list[int]
    num_tokens: int
    sum_len_sq: int
    units_S: npt.NDArray[np.int64]
    """Unit of each segment in [0, U), ascending over the micro-batch; -1 for padding, and for rows that fill up."""
    values_BT: dict[str, npt.NDArray[np.float32]]
    """Numbers of the target tokens, by name: shifted as the labels are, 0 where there is none."""
    lengths_B: list[list[int]]
    """Tokens of the pieces of each pack, padding apart."""
    is_one_call: bool = False
    """Where every piece is a row of its own, all packs go through the model together instead of one by one."""
    attached: object | None = None
    """What the objective reads beside the tokens, such as what a teacher says of them."""

    @property
    def num_targets(self) -> int:
        """Return the supervised targets of the micro-batch."""
        return sum(self.num_targets_B)

    @property
    def last_S(self) -> npt.NDArray[np.int64]:
        """Return where the last token of each segment is in the flattened batch: where an answer is scored.

        What an answer ends with is what its rendering does: in a chat template the token that ends a turn, and what
        the template writes behind that; of texts EOS.
        """
        return self.cu_seq_lens[1:].astype(np.int64) - 1

    @property
    def num_units(self) -> int:
        """Return the units of the micro-batch."""
        return int(self.units_S.max(initial=-1)) + 1


def collate(
    packs: Sequence[Pack], sources: Sequence[int], seq_len: int, pad_id: int, is_one_call: bool = False
) -> MicroBatch:
    """Lay packs out with labels already shifted inside each document.

    The label of a position is the next token of the same document if that token is supervised; the
    last token of a document has none, so nothing is predicted across a boundary. Padding is a
    segment of its own without labels, so shapes never change between steps.
    """
    shape = (len(packs), seq_len)
    tokens = np.full(shape, pad_id, dtype=np.int64)
    labels = np.full(shape, IGNORE, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    segments = np.zeros(shape, dtype=np.int64)
    values = {name: np.zeros(shape, dtype=np.float32) for pack in packs for name in pack.values}
    boundaries = [0]
    units: list[int] = []
    num_segments = sum_len_sq = num_tokens = num_units = 0
    for row, pack in enumerate(packs):
        lengths = list(pack.lengths)
        used = len(pack.tokens)
        num_tokens += used
        sum_len_sq += sum(length * length for length in lengths)
        for count in [1] * len(lengths) if pack.unit_pieces is None else pack.unit_pieces:
            units += [num_units] * count
            num_units += 1
        if used < seq_len:
            lengths.append(seq_len - used)
            units.append(-1)
        tokens[row, :used] = pack.tokens
        start = 0
        for length in lengths:
            stop = start + length
            positions[row, start:stop] = np.arange(length)
            segments[row, start:stop] = num_segments
            if stop <= used:
                is_target = pack.supervised[start + 1 : stop]
                labels[row, start : stop - 1] = np.where(is_target, pack.tokens[start + 1 : stop], IGNORE)
                for name, numbers in pack.values.items():
                    values[name][row, start : stop - 1] = np.where(is_target, numbers[start + 1 : stop], 0)
            boundaries.append(boundaries[-1] + length)
            num_segments += 1
            start = stop
    return MicroBatch(
        tokens_BT=tokens,
        labels_BT=labels,
        positions_BT=positions,
        segments_BT=segments,
        cu_seq_lens=np.asarray(boundaries, dtype=np.int32),
        max_seq_len=int(np.max(np.diff(boundaries))),
        num_targets_B=[int(n) for n in (labels != IGNORE).sum(axis=1)],
        source_B=list(sources),
        num_tokens=num_tokens,
        sum_len_sq=sum_len_sq,
        units_S=np.asarray(units, dtype=np.int64),
        values_BT=values,
        lengths_B=[list(pack.lengths) for pack in packs],
        is_one_call=is_one_call,
    )
