"""Whether a text shares words in a row with an evaluation set, as GPT-3's authors looked for (arXiv:2005.14165, C).

Words are compared in lower case and without punctuation. A text of an evaluation set that is shorter than such a row
cannot be found, which is counted.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.many import many
from trainer.errors import DataError

KEY = "`data.sources.NAME.curate.against`"
WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class EvaluationTexts:
    """The rows of words of one evaluation set."""

    name: str
    ngrams: frozenset[int]
    num_texts: int
    num_short: int
    """Texts without a single row of words of this length."""


def find_overlap(text: str, files: tuple[str, ...], ngram: int) -> str | None:
    """Return the first words in a row that a text shares with one of the files, and with which; None if it does not.

    Raises:
        DataError: A file cannot be read.
    """
    sets = [read_evaluation(file, ngram) for file in files]
    words = WORD.findall(text.lower())
    for at, hashed in enumerate(_ngrams(words, ngram)):
        for one in sets:
            if hashed in one.ngrams:
                return f"'{' '.join(words[at : at + ngram])}' stands in {one.name} too"
    return None


def describe_evaluations(files: list[str], ngram: int) -> list[str]:
    """Return a line for each evaluation set: what was looked for, and what could not be."""
    sets = [read_evaluation(file, ngram) for file in files]
    return [
        f"compared with {many(one.num_texts, 'text')} of {one.name} by rows of {ngram} words"
        + (f"; {one.num_short:,} of them are shorter and cannot be found" if one.num_short else "")
        for one in sets
    ]


def evaluation_digest(file: str) -> str:
    """Name what an evaluation set holds.

    Raises:
        DataError: It cannot be read.
    """
    return hashlib.sha256(_bytes(file)).hexdigest()


@functools.lru_cache(maxsize=32)
def read_evaluation(file: str, ngram: int) -> EvaluationTexts:
    """Read an evaluation set once a process.

    Raises:
        DataError: It cannot be read, or holds no text.
    """
    found: set[int] = set()
    num_texts = num_short = 0
    for text in _texts(file):
        hashed = list(_ngrams(WORD.findall(text.lower()), ngram))
        num_texts, num_short = num_texts + 1, num_short + (not hashed)
        found.update(hashed)
    if not num_texts:
        raise DataError(f"{KEY} must name sets with texts, but {file} has none. Check it.")
    return EvaluationTexts(Path(file).name, frozenset(found), num_texts, num_short)


def _bytes(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise DataError(
            f"{KEY} must name files that can be read, but {file} cannot be ({error.strerror}). Check it."
        ) from error


def _texts(file: str) -> Iterator[str]:
    raw = _bytes(file)
    try:
        lines = raw.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{KEY} must name UTF-8 files, but {file} is none. Convert it.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if not file.endswith(".jsonl"):
            yield line
            continue
        try:
            yield from _leaves(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}, line {number} must be JSON, but is not. Mend it.") from error


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str) and value.strip():
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)


def _ngrams(words: list[str], ngram: int) -> Iterator[int]:
    for at in range(len(words) - ngram + 1):
        joined = " ".join(words[at : at + ngram]).encode()
        yield int.from_bytes(hashlib.blake2b(joined, digest_size=8).digest(), "little")
