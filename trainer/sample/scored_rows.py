"""Rows for a reward model to score: read, turned into the tokens that training would have, and written with scores.

Shapes: A answers of a row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.data import Format, SourceConfig
from trainer.data.tokens.sides import encode_answers
from trainer.data.types import RowBatch, TokenizerLike
from trainer.errors import DataError

KEY = "evaluate.scores.file"
PAIR, ONE, SEVERAL = ("chosen", "rejected"), ("completion",), ("answers", "completions")
KINDS = "{prompt, chosen, rejected}, {prompt, completion} or {prompt, answers}"


@dataclass(frozen=True, slots=True)
class RowToScore:
    """A row and the tokens of its answers, each behind the prompt."""

    row: dict[str, Any]
    answers: tuple[Any, ...]
    tokens_A: tuple[tuple[int, ...], ...]
    """Empty where the row is dropped; of several answers those without tokens are left out."""
    num_learnt_A: tuple[int, ...]
    """Tokens of each answer alone."""
    dropped: str = ""
    """Why, as `prepare` counts it."""

    @property
    def is_pair(self) -> bool:
        """Tell whether it has a chosen and a rejected answer."""
        return all(key in self.row for key in PAIR)

    @property
    def has_several(self) -> bool:
        """Tell whether it has answers of which the best is wanted."""
        return any(key in self.row for key in SEVERAL)


def read_rows(
    path: Path, tokenizer: TokenizerLike, as_chat: bool, longest: int | None
) -> Iterator[RowToScore]:
    """Yield the rows of a file.

    Args:
        longest: Tokens that the model was made for; None: not known. Longer answers drop their row.
    Raises:
        DataError: The file cannot be read, or a row cannot; names the line.
    """
    for number, row in read_objects(path):
        yield row_to_score(row, path, number, tokenizer, as_chat, longest)


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a file with their lines, from 1; raises as read_rows does."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"`{KEY}` must be a file of rows, but {path} cannot be read ({error}). Check it."
        ) from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, _parsed(line, path, number)


def _parsed(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise DataError(
            f"`{KEY}` must hold one JSON object a line, but {path}:{number} is none. Mend that line."
        )
    return row


def row_to_score(
    row: dict[str, Any], path: Path, number: int, tokenizer: TokenizerLike, as_chat: bool, longest: int | None
) -> RowToScore:
    """Return a row with the tokens of its answers.

    Args:
        number: Of its line in the file, from 1.
        longest: As in read_rows; which it raises as.
    """
    prompt = row.get("prompt", row.get("messages"))
    answers: tuple[Any, ...]
    several = next((row[key] for key in SEVERAL if key in row), None)
    if all(key in row for key in PAIR):
        given, answers = [row], (row["chosen"], row["rejected"])
        format_ = Format.preference
    elif isinstance(several, list) and several:
        answers, format_ = tuple(several), Format.unpaired
        given = [{"prompt": prompt, "completion": one, "label": True} for one in several]
    elif "completion" in row:
        answers, format_ = (row["completion"],), Format.unpaired
        given = [{"prompt": prompt, "completion": row["completion"], "label": True}]
    else:
        has = sorted(row) if several is None else f"{several!r:.60} where a list of answers belongs"
        raise DataError(f"`{KEY}` must hold rows of {KINDS}, but {path}:{number} has {has}. Mend that line.")
    source = SourceConfig(format=format_, as_chat=as_chat)
    tokens: list[tuple[int, ...]] = []
    learnt: list[int] = []
    for one in given:
        found = encode_answers(RowBatch(str(path), "line", [number], [one]), source, not as_chat, tokenizer)
        for problem in found.problems:
            raise DataError(
                f"`{KEY}` must {problem.rule}, but {problem.where} has {problem.value}. {problem.fix}"
            )
        if not len(found.lengths) and several is not None:
            tokens.append(())
            learnt.append(0)
        elif not len(found.lengths):
            why = [name for name, count in found.counts.items() if count and name != "rows"]
            return RowToScore(row, answers, (), (), ", ".join(why) or "empty")
        start = 0
        for length in found.lengths.tolist():
            tokens.append(tuple(found.tokens[start : start + length].tolist()))
            learnt.append(int(found.supervised[start : start + length].sum()))
            start += length
    if not any(tokens):
        return RowToScore(row, answers, (), (), "no answer")
    if longest is not None and max(map(len, tokens)) > longest:
        return RowToScore(row, answers, (), (), f"longer than the model's {longest} tokens")
    return RowToScore(row, answers, tuple(tokens), tuple(learnt))


def with_scores(row: RowToScore, scores_A: list[float]) -> dict[str, Any]:
    """Return a row as it is written: with what its answers scored, or with why it was dropped."""
    if row.dropped:
        return {**row.row, "dropped": row.dropped}
    if row.is_pair:
        return {**row.row, "score_chosen": scores_A[0], "score_rejected": scores_A[1]}
    if not row.has_several:
        return {**row.row, "score": scores_A[0]}
    return {**row.row, "scores": [None if math.isnan(score) else score for score in scores_A]}


def best_of(row: RowToScore, scores_A: list[float]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the best answer as a conversation to learn, and it beside the worst as a pair; None where they tie.

    Of answers that tie the first is taken; those without a score (NaN) do not count.
    """
    known = [score for score in scores_A if not math.isnan(score)]
    best, worst = (scores_A.index(found(known)) for found in (max, min))
    prompt = row.row.get("prompt", row.row.get("messages"))
    asked = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    answer = row.answers[best]
    said = answer if isinstance(answer, list) else [{"role": "assistant", "content": answer}]
    learnt = {"messages": [*asked, *said], "score": scores_A[best], "num_answers": len(known)}
    margin = scores_A[best] - scores_A[worst]
    if not margin > 0:
        return learnt, None
    pair = {"prompt": prompt, "chosen": answer, "rejected": row.answers[worst], "margin": margin}
    return learnt, pair
