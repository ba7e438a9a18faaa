"""Reads conversations that are one text of turns marked "Human:" and "Assistant:", as HH-RLHF has them. Pure."""

from __future__ import annotations

import re
from collections import Counter
from itertools import groupby

from trainer.data.types import Message

MARK = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
"""Stands behind a blank line, or at the beginning."""
ROLES = {"Human": "user", "Assistant": "assistant"}


def is_human_text(value: object) -> bool:
    """Tell whether a value is such a text; its first turn is of the human."""
    first = MARK.match(value) if isinstance(value, str) else None
    return first is not None and first[1] == "Human"


def split_text(text: str) -> tuple[str, str]:
    """Return the text up to the last "Assistant:", which is included, and the answer behind it.

    Where the last turn is the human's, the answer is empty.
    """
    marks = list(MARK.finditer(text))
    if marks[-1][1] != "Assistant":
        return text, ""
    return text[: marks[-1].end()], text[marks[-1].end() :]


def split_turns(text: str, counts: Counter[str]) -> list[Message]:
    """Return the turns; those of one speaker in a row are one turn, with blank lines between.

    Counts:
        joined_turns: those that are one with the turn before.
    """
    marks = list(MARK.finditer(text))
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    said = [(ROLES[mark[1]], text[mark.end() : end].strip()) for mark, end in zip(marks, ends, strict=True)]
    turns: list[Message] = [
        {"role": role, "content": "\n\n".join(words for _, words in run if words)}
        for role, run in groupby(said, key=lambda turn: turn[0])
    ]
    counts["joined_turns"] += len(said) - len(turns)
    return turns
