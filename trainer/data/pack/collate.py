"""Turn packs into one micro-batch of arrays. Pure NumPy; knows no device.

Shapes: B packs of a micro-batch, T = data.seq_len, S isolated segments in all packs (padding is one), U units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trainer.data.types import Pack

IGNORE = -100
"""Label of a position without a supervised target (torch's convention)."""


@dataclass(slots=True)
class MicroBatch:
    """One micro-batch on the host.

    Shapes: tokens, labels, positions, segments [B, T] int64; cu_seq_lens [S + 1] int32 over B*T; units, prefixes,
    firsts [S] int64.
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
    """Of the tokens of each document, squared: twice the pairs of tokens that attention computes. A branch has those of
    the whole less those of its prefix."""
    units_S: npt.NDArray[np.int64]
    """Unit of each segment in [0, U), ascending over the micro-batch; -1 for padding, and for rows that fill up."""
    prefixes_S: npt.NDArray[np.int64]
    """Tokens at the beginning of the first segment of its unit that each segment sees before its own; mostly 0."""
    firsts_S: npt.NDArray[np.int64]
    """The first segment of each segment's unit; of padding itself."""
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

    @property
    def shares_prompts(self) -> bool:
        """Tell whether any segment sees tokens of another."""
        return bool(self.prefixes_S.any())


def collate(
    packs: Sequence[Pack], sources: Sequence[int], seq_len: int, pad_id: int, is_one_call: bool = False
) -> MicroBatch:
    """Lay packs out with labels already shifted inside each document.

    The label of a position is the next token of the same document if that token is supervised; the
    last token of a document has none, so nothing is predicted across a boundary. Padding is a
    segment of its own without labels, so shapes never change between steps. A branch goes on behind its prefix: its
    positions begin there, and its first token is the prompt's last.
    """
    shape = (len(packs), seq_len)
    tokens = np.full(shape, pad_id, dtype=np.int64)
    labels = np.full(shape, IGNORE, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    segments = np.zeros(shape, dtype=np.int64)
    values = {name: np.zeros(shape, dtype=np.float32) for pack in packs for name in pack.values}
    laid = _Segments()
    for row, pack in enumerate(packs):
        used = len(pack.tokens)
        tokens[row, :used] = pack.tokens
        start = 0
        for number, length, seen in laid.add(pack, seq_len):
            stop = start + length
            positions[row, start:stop] = np.arange(seen, seen + length)
            segments[row, start:stop] = number
            if stop <= used:
                is_target = pack.supervised[start + 1 : stop]
                labels[row, start : stop - 1] = np.where(is_target, pack.tokens[start + 1 : stop], IGNORE)
                for name, numbers in pack.values.items():
                    values[name][row, start : stop - 1] = np.where(is_target, numbers[start + 1 : stop], 0)
            start = stop
    lengths, prefixes, units = (np.asarray(found, dtype=np.int64) for found in laid.columns)
    is_real = units >= 0
    return MicroBatch(
        tokens_BT=tokens,
        labels_BT=labels,
        positions_BT=positions,
        segments_BT=segments,
        cu_seq_lens=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        max_seq_len=int(lengths.max()),
        num_targets_B=[int(n) for n in (labels != IGNORE).sum(axis=1)],
        source_B=list(sources),
        num_tokens=int(lengths[is_real].sum()),
        sum_len_sq=int((lengths * (lengths + 2 * prefixes))[is_real].sum()),
        units_S=units,
        prefixes_S=prefixes,
        firsts_S=np.asarray(laid.firsts, dtype=np.int64),
        values_BT=values,
        lengths_B=[list(pack.lengths) for pack in packs],
        is_one_call=is_one_call,
    )


@dataclass(slots=True)
class _Segments:
    """The segments of packs, one after the other."""

    lengths: list[int] = field(default_factory=list)
    prefixes: list[int] = field(default_factory=list)
    units: list[int] = field(default_factory=list)
    firsts: list[int] = field(default_factory=list)
    num_units: int = 0

    @property
    def columns(self) -> tuple[list[int], list[int], list[int]]:
        return self.lengths, self.prefixes, self.units

    def add(self, pack: Pack, seq_len: int) -> list[tuple[int, int, int]]:
        """Add those of a pack; return the number of each, its tokens and what it sees before them."""
        begin = len(self.lengths)
        self.lengths += pack.lengths
        self.prefixes += pack.prefixes or [0] * len(pack.lengths)
        for count in pack.unit_pieces or [1] * len(pack.lengths):
            self.firsts += [len(self.units)] * count
            self.units += [self.num_units] * count
            self.num_units += 1
        padding = seq_len - len(pack.tokens)
        if padding:
            self.lengths.append(padding)
            self.prefixes.append(0)
            self.firsts.append(len(self.units))
            self.units.append(-1)
        numbers = range(begin, len(self.lengths))
        return list(zip(numbers, self.lengths[begin:], self.prefixes[begin:], strict=True))
