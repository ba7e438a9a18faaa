"""Short windows of documents and a plain model's loss on them: one process, no engine, no packing.

All windows are as long, whatever they are of, so that no text is helped by more of what stands before it.

Shapes: B rows, T tokens of the longest row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trainer.data.store.store import SplitStore
from trainer.data.types import Pack, Unit
from trainer.evaluate.held_out import LABEL

WIDTH = 96
"""Tokens of a window: of the texts of the package few documents have more."""
BATCH = 4
"""Rows at once: with 128k tokens of vocabulary their logits are 4 x 96 x 128k x 4 bytes = 0.2 GB."""


@dataclass(frozen=True, slots=True)
class TextWindow:
    """Some tokens of a document in a row; the first is only read."""

    document: int
    ids: npt.NDArray[np.int64]
    learnt: npt.NDArray[np.bool_]

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        """Return the tokens whose loss is taken."""
        return self.ids[1:][self.learnt[1:]]


def cut_window(
    document: int,
    ids: npt.NDArray[np.int64],
    learnt: npt.NDArray[np.bool_],
    rng: np.random.Generator,
    special: Collection[int] = (),
) -> TextWindow | None:
    """Return a window of a document that holds something learnt, drawn evenly; None where nothing is.

    Args:
        special: Ids of tokens that are no text, whose loss is not taken: the twelve letters of an end of turn that
            follows each short answer would be the most of what is learnt.
    """
    learnt = learnt & ~np.isin(ids, list(special))
    wanted = np.flatnonzero(learnt[1:]) + 1
    if not len(wanted):
        return None
    middle = int(rng.choice(wanted)) if len(ids) > WIDTH else 0
    first = min(max(middle - WIDTH // 2, 0), max(len(ids) - WIDTH, 0))
    span = slice(first, first + WIDTH)
    return TextWindow(document, ids[span], learnt[span])


def sample_windows(
    split: SplitStore, num: int, rng: np.random.Generator, special: Collection[int] = ()
) -> list[TextWindow]:
    """Return up to `num` windows of documents in packs drawn without repeating, one of a document or of a part of one.

    Of pairs the chosen answers, of labelled answers the desirable ones. `special` is that of cut_window.
    """
    found: list[TextWindow] = []
    for index in rng.permutation(split.num_packs).tolist():
        pack = split.pack(index)
        for document, span in _documents(split, index, pack):
            window = cut_window(document, pack.tokens[span], pack.supervised[span], rng, special)
            if window is not None:
                found.append(window)
            if len(found) == num:
                return found
    return found


def _documents(split: SplitStore, index: int, pack: Pack) -> Iterator[tuple[int, slice]]:
    step = 2 if split.unit is Unit.pair else 1
    start = 0
    for place, (length, document) in enumerate(
        zip(pack.lengths, split.documents_of(index).tolist(), strict=True)
    ):
        span = slice(start, start + length)
        start += length
        is_liked = split.unit is not Unit.answer or pack.values[LABEL][span].sum() > 0
        if place % step == 0 and is_liked:
            yield document, span


@torch.inference_mode()
def score_windows(
    model: Any,
    windows: Sequence[TextWindow],
    device: torch.device,
    on_row: Callable[[int], None] = lambda done: None,
) -> npt.NDArray[np.float64]:
    """Return the loss of each window in nats, summed over what is learnt.

    Rows are filled up on the right, where a causal model looks at nothing that counts.
    """
    sums: list[float] = []
    for begin in range(0, len(windows), BATCH):
        rows = windows[begin : begin + BATCH]
        width = max(len(row.ids) for row in rows)
        tokens_BT = torch.zeros((len(rows), width), dtype=torch.long)
        learnt_BT = torch.zeros((len(rows), width), dtype=torch.bool)
        is_there_BT = torch.zeros((len(rows), width), dtype=torch.long)
        for number, row in enumerate(rows):
            tokens_BT[number, : len(row.ids)] = torch.from_numpy(row.ids)
            learnt_BT[number, : len(row.ids)] = torch.from_numpy(row.learnt)
            is_there_BT[number, : len(row.ids)] = 1
        logits_BTV = model(
            tokens_BT.to(device), attention_mask=is_there_BT.to(device), use_cache=False
        ).logits
        log_probs_BTV = torch.log_softmax(logits_BTV[:, :-1].float(), dim=-1)
        nll_BT = -log_probs_BTV.gather(-1, tokens_BT[:, 1:, None].to(device))[..., 0].double().cpu()
        sums += (nll_BT * learnt_BT[:, 1:]).sum(dim=1).tolist()
        on_row(len(rows))
    return np.array(sums, dtype=np.float64)
