"""Finds where an assistant's turn begins and ends in a text, in what the template writes around its words.

A turn begins where the generation prompt of the turns before it ends, as far as the text has it; it ends with the
mark that the template also writes when the conversation ends there.
"""

from __future__ import annotations

import re

PIECE = re.compile(r"<[^<>\s]{1,60}>|\[/?[A-Z][A-Z_]{1,30}\]|[^<\[]+|.", re.DOTALL)
TAG = re.compile(r"\s*(<[^<>\s]{1,60}>|\[/?[A-Z][A-Z_]{1,30}\])")


def find_start(gap: str, before: str | None, prompt: str | None) -> int | None:
    """Return where in the gap before a turn's words the template's part ends and the model's begins.

    Args:
        gap: What stands between the words of the turns before and those of this one.
        before: The rendering of the turns before; None if the template refuses it.
        prompt: The same with the generation prompt.
    """
    if not gap:
        return 0
    if prompt is None:
        return None
    header = "" if before is None else prompt[len(common_start(before, prompt)) :]
    pieces = PIECE.findall(header)
    for count in range(len(pieces), 0, -1):
        opening = "".join(pieces[:count])
        at = gap.rfind(opening)
        if at >= 0 and opening.strip():
            return at + len(opening)
    for text in (prompt, before or ""):
        for length in range(len(gap), 0, -1):
            if text.endswith(gap[:length]):
                return length
    return None


def find_end(gap: str, alone: str | None, is_last: bool) -> tuple[int, bool]:
    """Return where in the gap after a turn's words the turn ends, and whether a mark ends it.

    Args:
        gap: What stands between the turn's words and the next words, or the end of the text.
        alone: What is written after its words when the conversation ends there; None if unknown.
    """
    if is_last:
        end = len(gap.rstrip()) or len(gap)
        return end, end > 0
    if alone is None:
        # Refused without what follows it: its mark is the first.
        mark = TAG.match(gap)
        return (mark.end(), True) if mark else (0, False)
    shared = common_start(gap, alone)
    if shared:
        return len(shared.rstrip()) or len(shared), True
    if not alone.strip():
        return 0, False
    mark = TAG.match(gap)  # another mark ends a conversation than a turn
    return (mark.end(), True) if mark else (0, False)


def stop_after(gap: str) -> int:
    """Return where the first tag behind a turn without a mark ends: the token that stops the model there."""
    mark = TAG.match(gap)
    return mark.end() if mark else 0


def common_start(first: str, second: str) -> str:
    """Return the pieces (tags and the text between them) that two texts begin with."""
    length = 0
    for a, b in zip(PIECE.findall(first), PIECE.findall(second), strict=False):
        if a != b:
            if a.isspace() or b.isspace() or not (TAG.match(a) or TAG.match(b)):
                length += _common(a, b)
            break
        length += len(a)
    return first[:length]


def _common(first: str, second: str) -> int:
    length = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        length += 1
    return length
