"""What a verifier says of an answer, and the verifiers that are built in. Pure.

A verdict has a score, or has failed: the verifier could not say. That is counted and is no zero.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

NUMBER = re.compile(r"(?:(?<![\w.])[-+])?\$?(?:(?:\d{1,3}(?:,\d{3})+(?![\d])|\d+)(?:\.\d+)?|\.\d+)")
MARK = "####"
"""Before the result in GSM8K."""
_SAID = re.compile(r"answer(?:\s+is|\s*:)\s*[*_(\[]*([A-Za-z])\b", re.IGNORECASE)
_FIRST = re.compile(r"\s*[*_(\[]*([A-Za-z])(?:[)\].:*_]|\s*$|\s*\n)")


@dataclass(frozen=True, slots=True)
class Verdict:
    """A score, or why there is none."""

    score: float | None
    failure: str = ""
    note: str = ""
    """What was seen on the way that may surprise, such as an answer without a number."""


def check_answer(kind: str, pattern: str | None, answer: str, reference: str) -> Verdict:
    """Return the verdict of a built-in verifier: 1 or 0; failed where the row's reference is none for it."""
    if kind == "regex":
        compiled = re.compile((pattern or "").replace("{reference}", re.escape(reference)))
        return Verdict(float(compiled.search(answer) is not None))
    if pattern is not None:
        found = re.search(pattern.replace("{reference}", re.escape(reference)), answer)
        if found is None:
            return Verdict(0.0, note="nothing that the pattern finds")
        answer = found[1] or ""
    match kind:
        case "exact":
            return Verdict(float(_plain(answer) == _plain(reference)))
        case "number":
            return _compare(number_in(answer), number_in(reference), "number")
        case _:
            return _compare(letter_in(answer), letter_in(reference), "letter")


def number_in(text: str) -> Decimal | None:
    """Return the number behind the last ####, else the last number of a text; None where there is none."""
    said = text.rpartition(MARK)[2] if MARK in text else text
    found = NUMBER.findall(said)
    if not found:
        return None
    chosen = found[0] if MARK in text else found[-1]
    try:
        return Decimal(chosen.replace(",", "").replace("$", ""))
    except InvalidOperation:
        return None


def letter_in(text: str) -> str | None:
    """Return the letter of a choice: behind the last "answer is" or "answer:", else at the very beginning."""
    said = _SAID.findall(text)
    first = _FIRST.match(text)
    found = said[-1] if said else first[1] if first else None
    return found.upper() if found else None


def _compare(found: object, wanted: object, what: str) -> Verdict:
    if wanted is None:
        return Verdict(None, failure=f"the reference has no {what}")
    if found is None:
        return Verdict(0.0, note=f"no {what}")
    return Verdict(float(found == wanted))


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(".")


def verdict_of(value: object) -> Verdict:
    """Return the verdict that a person's function returned: a finite number or a truth."""
    if isinstance(value, bool | int | float):
        number = float(value)
        if number - number == 0:
            return Verdict(number)
    return Verdict(None, failure=f"returned {value!r:.60}, which is no finite number")


def plain_verdict(verdict: Verdict) -> dict[str, object]:
    """Return a verdict as JSON values."""
    return {"score": verdict.score, "failure": verdict.failure, "note": verdict.note}


def from_plain(told: Mapping[str, object]) -> Verdict:
    """Return the verdict of JSON values."""
    score = told.get("score")
    return Verdict(
        float(score) if isinstance(score, int | float) else None,
        str(told.get("failure", "")),
        str(told.get("note", "")),
    )
