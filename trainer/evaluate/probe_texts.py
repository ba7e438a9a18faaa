"""Texts that show what a model knew, by kind, which nobody has to name: those of the package, and a person's folder.

The texts of the package were written for it. They are few and short: a kind of six documents of some 60 tokens each
tells a change of a tenth of a nat from chance, and no small one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.config.data import Format, SourceConfig
from trainer.data.store.held_back import split_hash
from trainer.data.store.store import Store
from trainer.data.tokens.tokenise import encode_batch
from trainer.data.types import RowBatch, TokenizerLike
from trainer.errors import DataError
from trainer.evaluate.probe_cost import FILE
from trainer.evaluate.text_bytes import text_bytes

KEY = "evaluate.probe_dir"
CONVERSATION = "Conversation"
KIND, NEXT = "=== ", "---"
PROSE = "Plain prose"
MOST_BYTES = 64_000
"""Of a file of a person's folder that are read: its beginning."""
DOCUMENT_CHARACTERS = 1_000
"""A text of a person's folder is cut at an empty line behind so many characters, so that it has an interval."""
MOST_FILES = 64
_ROW_FILES = (".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class ProbeTexts:
    """Documents of one kind: rows with `text`, or with `messages`."""

    kind: str
    rows: tuple[dict[str, Any], ...]
    note: str = ""
    """What was left away of its file."""


@dataclass(frozen=True, slots=True)
class ProbeTokens:
    """Documents of one kind as a model reads them."""

    kind: str
    tokens: tuple[npt.NDArray[np.int64], ...]
    supervised: tuple[npt.NDArray[np.bool_], ...]
    num_bytes: tuple[int, ...]
    """UTF-8 bytes of what is supervised of each."""
    hashes: npt.NDArray[np.uint64]
    """Of the content, as stores keep them of their documents."""


def packaged_texts() -> list[ProbeTexts]:
    """Return the texts that ship with the package."""
    whole = (resources.files("trainer.evaluate") / FILE).read_text(encoding="utf-8")
    found = []
    for block in re.split(rf"^{KIND}", whole, flags=re.MULTILINE)[1:]:
        kind, _, body = block.partition("\n")
        texts = [text.strip("\n") for text in f"\n{body}".split(f"\n{NEXT}\n")]
        found.append(ProbeTexts(kind.strip(), tuple({"text": text} for text in texts)))
    return found


def folder_texts(folder: str) -> list[ProbeTexts]:
    """Return a kind of text for every file of a folder, named by the file.

    A `.jsonl` file has rows with `text` or `messages`; any other is one text, cut at empty lines.

    Raises:
        DataError: There is no folder, nothing in it, or a file that is not text.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        state = "a file" if place.exists() else "not there"
        raise DataError(
            f"`{KEY}` must be a folder of text files, but {folder} is {state} instead. Give a folder, or leave it out."
        )
    try:
        files = sorted(file for file in place.iterdir() if file.is_file() and not file.name.startswith("."))
    except OSError as error:
        raise _unreadable(place, error.strerror or str(error)) from error
    if not files:
        raise DataError(
            f"`{KEY}` must hold text files, but {folder} has none instead. Put a file for each kind of text that is "
            "to be kept into it, or leave it out."
        )
    if len(files) > MOST_FILES:
        raise DataError(
            f"`{KEY}` must hold at most {MOST_FILES} files, each a kind of text, but {folder} has "
            f"{len(files)} instead. Put texts of one kind into one file: rows with `text` in a .jsonl file."
        )
    return [_of_file(file) for file in files]


def _of_file(file: Path) -> ProbeTexts:
    try:
        with file.open("rb") as stream:
            raw = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise _unreadable(file, error.strerror or str(error)) from error
    is_cut = len(raw) > MOST_BYTES
    if is_cut:  # at the last whole line, so that no character and no row is cut
        raw = raw[:MOST_BYTES].rpartition(b"\n")[0] or raw[:MOST_BYTES]
    try:
        text = raw.decode("utf-8", errors="ignore" if is_cut and b"\n" not in raw else "strict")
    except UnicodeDecodeError as error:
        raise _unreadable(file, f"byte {error.start} is not UTF-8") from error
    rows = list(_rows(file, text)) if file.suffix in _ROW_FILES else [{"text": one} for one in _cut(text)]
    if not rows:
        raise _unreadable(file, "it is empty")
    return ProbeTexts(file.name, tuple(rows), f"the first {MOST_BYTES // 1000} kB of it" if is_cut else "")


def _rows(file: Path, text: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _unreadable(file, f"line {number} is not JSON") from error
        if not isinstance(row, dict) or not (
            isinstance(row.get("text"), str) or isinstance(row.get("messages"), list)
        ):
            raise _unreadable(file, f"line {number} has neither `text` nor `messages`")
        yield {key: row[key] for key in ("messages", "text") if key in row and row[key] is not None}


def _cut(text: str) -> Iterator[str]:
    """Yield the paragraphs of a text, short ones together."""
    so_far: list[str] = []
    for paragraph in text.replace("\r\n", "\n").split("\n\n"):
        if paragraph.strip():
            so_far.append(paragraph)
        if sum(map(len, so_far)) >= DOCUMENT_CHARACTERS:
            yield "\n\n".join(so_far)
            so_far = []
    if so_far:
        yield "\n\n".join(so_far)


def _unreadable(file: Path, why: str) -> DataError:
    return DataError(
        f"`{KEY}` must hold files of UTF-8 text, or .jsonl files of rows with `text` or `messages`, but {file} cannot "
        f"be used instead: {why}. Mend it, or take it out of the folder."
    )


def encode_texts(texts: ProbeTexts, tokenizer: TokenizerLike) -> ProbeTokens | str:
    """Encode the documents of a kind; return why not where the tokenizer or its chat template refuses them."""
    rows = [_for_template(row, tokenizer) for row in texts.rows] if texts.kind == CONVERSATION else texts.rows
    chats = [row for row in rows if "messages" in row]
    if chats and not tokenizer.has_chat_template:
        return "its rows are conversations, and the tokenizer has no chat template (model.chat_template=FILE gives one)"
    tokens: list[npt.NDArray[np.int64]] = []
    supervised: list[npt.NDArray[np.bool_]] = []
    hashes: list[int] = []
    for form, chosen in ((Format.chat, chats), (Format.text, [row for row in rows if "messages" not in row])):
        if not chosen:
            continue
        batch = RowBatch(texts.kind, "row", list(range(1, len(chosen) + 1)), list(chosen))
        try:
            found = encode_batch(batch, SourceConfig(format=form), False, tokenizer)
        except DataError as error:
            return str(error)
        ends = np.cumsum(found.lengths)
        spans = [
            slice(end - length, end)
            for end, length in zip(ends.tolist(), found.lengths.tolist(), strict=True)
        ]
        tokens += [found.tokens[span].astype(np.int64) for span in spans]
        supervised += [found.supervised[span].astype(np.bool_) for span in spans]
        hashes += [split_hash(digest) for digest in found.digests]
    whole = [number for number, mark in enumerate(supervised) if mark[1:].any()]
    if not whole:
        return "nothing is left of it that could be predicted"
    sizes = [text_bytes(tokenizer, tokens[number][1:][supervised[number][1:]]) for number in whole]
    return ProbeTokens(
        texts.kind,
        tuple(tokens[number] for number in whole),
        tuple(supervised[number] for number in whole),
        tuple(sizes),
        np.array([hashes[number] for number in whole], dtype=np.uint64),
    )


def _for_template(row: dict[str, Any], tokenizer: TokenizerLike) -> dict[str, Any]:
    """Return a conversation of the package as messages where there is a template to render them with."""
    asked, found, answered = str(row["text"]).removeprefix("User: ").partition("\nAssistant: ")
    if not (tokenizer.has_chat_template and found):
        return row
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]}


def trained_on(probe: ProbeTokens, stores: Sequence[Store]) -> int:
    """Return how many documents of a probe are trained on, whole and after cleaning: as `check_disjoint` tells."""
    shared = 0
    for store in stores:
        trained = store.train.document_hashes()
        if len(trained):
            place = np.minimum(np.searchsorted(trained, probe.hashes), len(trained) - 1)
            shared += int(np.count_nonzero(trained[place] == probe.hashes))
    return shared
