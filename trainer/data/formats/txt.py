"""Reads txt files: a document a file, a line or a paragraph."""

from __future__ import annotations

import re
from collections.abc import Iterator

from trainer.data.formats.stream import DataFile, open_text
from trainer.errors import DataError

BLANK_LINES = re.compile(r"\n[^\S\n]*\n\s*")


def read_texts(file: DataFile, documents: str) -> Iterator[tuple[int, str]]:
    """Read the documents of a file, each with its line or number.

    Raises:
        DataError: If the file is not text.
    """
    with open_text(file) as stream:
        match documents:
            case "line":
                for number, line in enumerate(stream, 1):
                    yield number, _checked(line.rstrip("\n"), f"{file}, line {number}")
            case "paragraph":
                paragraphs = BLANK_LINES.split(_checked(stream.read(), str(file)))
                yield from enumerate((p for p in paragraphs if p.strip()), 1)
            case _:
                yield 1, _checked(stream.read(), str(file))


def _checked(text: str, where: str) -> str:
    if "\0" in text:
        raise DataError(
            f"{where} must be text, but holds a NUL byte instead. Is it a binary file, or UTF-16? "
            "Convert it, or leave it out of the path."
        )
    return text
