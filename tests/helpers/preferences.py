"""Rows of preferences read as `prepare` reads them, and what their tokens say."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from trainer.config.data import ColumnsConfig, Format, SourceConfig
from trainer.data.rows.columns import recognise
from trainer.data.tokens.tokenise import encode_batch
from trainer.data.types import EncodedBatch, RowBatch, RowProblem
from trainer.model.tokenizer import Tokenizer


@dataclass
class Read:
    """What became of some rows: the prompt and the learnt texts of every answer, by row."""

    units: list[tuple[str, list[list[str]]]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[RowProblem] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    batch: EncodedBatch | None = None

    @property
    def only(self) -> tuple[str, list[list[str]]]:
        """The only row there is."""
        (unit,) = self.units
        return unit

    @property
    def dropped(self) -> dict[str, int]:
        """What was counted beside the rows."""
        return {
            key: count
            for key, count in self.counts.items()
            if count and key not in ("rows", "desirable", "undesirable")
        }


def read_rows(
    rows: list[dict[str, Any]],
    tokenizer: Tokenizer,
    format_: Format = Format.preference,
    as_chat: bool = True,
    adds_eos: bool = False,
    values: tuple[Any, ...] = (),
    **columns: Any,
) -> Read:
    """Recognise the columns of rows, and parse and encode them."""
    source = SourceConfig(format=format_, as_chat=as_chat, columns=ColumnsConfig(**columns))
    names = list(dict.fromkeys(name for row in rows for name in row))
    layout = recognise("s", source, names, values)
    given = RowBatch("rows.jsonl", "line", list(range(1, len(rows) + 1)), rows)
    batch = encode_batch(given, layout.source, adds_eos, tokenizer, values)
    read = Read(counts=batch.counts, problems=batch.problems, lines=layout.lines, batch=batch)
    pieces = (
        np.split(np.arange(len(batch.tokens)), np.cumsum(batch.lengths)[:-1]) if len(batch.lengths) else []
    )
    first = 0
    for count in batch.unit_pieces.tolist():
        prompts, answers = set(), []
        for piece in pieces[first : first + count]:
            ids, mark = batch.tokens[piece], batch.supervised[piece]
            begin = int(mark.argmax())
            prompts.add(tuple(ids[:begin].tolist()))
            runs = groupby(zip(ids.tolist(), mark.tolist(), strict=True), key=lambda pair: pair[1])
            answers.append([tokenizer.decode([token for token, _ in run]) for learnt, run in runs if learnt])
        assert len(prompts) == 1, "the answers of a row have different prompts"
        read.units.append((tokenizer.decode(list(prompts.pop())), answers))
        first += count
    return read
