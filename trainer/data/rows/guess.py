"""Tells what the rows of files hold, for a person who has not said it yet: format, columns and a sample that parses."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import assert_never

from trainer.config.data import ANSWERED, ColumnsConfig, Format, SourceConfig
from trainer.config.learn import LearnConfig
from trainer.config.many import many
from trainer.data.chat.settle import REASONING_KEYS, settle_chat
from trainer.data.formats.opened import open_file
from trainer.data.formats.txt import BLANK_LINES
from trainer.data.rows.absent_column import text_columns
from trainer.data.rows.clean import content_digest
from trainer.data.rows.columns import LAYOUTS, Row
from trainer.data.rows.document import parse_row
from trainer.data.rows.files import Listing, kind_of, list_files
from trainer.data.rows.preferred import parse_answers
from trainer.data.rows.source import first_rows, read_files
from trainer.data.types import (
    Answers,
    ChatDocument,
    CompletionDocument,
    Document,
    IdsDocument,
    RowError,
    TextDocument,
)
from trainer.errors import DataError

SAMPLE_ROWS = 10_000
SAMPLE_CHARS = 20_000_000
"""No more rows are read after so many characters."""
PREFERENCES = (Format.preference, Format.unpaired)
"""Formats that are tried before all others: their rows may hold conversations and prompts as well."""
ORDER = (Format.chat, Format.completion, Format.ids, Format.text)
"""Formats as they are tried: rows of chats may have a column `text` beside the conversation."""


@dataclass(frozen=True, slots=True)
class SampleRow:
    """A row of the sample whose document has something to learn."""

    file: str
    unit: str
    number: int
    row: Row
    text: str
    """All words that may be rendered: contents, reasoning, calls and schemas of tools."""
    num_turns: int
    """0 where no chat template renders it."""
    is_peculiar: bool
    """Whether it has tools, reasoning or other turns than of user and assistant by turns, which not every template
    renders."""


@dataclass(slots=True)
class Holding:
    """How much the rows of the sample hold."""

    num_rows: int = 0
    is_whole: bool = True
    """Whether there is no row beside them."""
    num_documents: int = 0
    """Those that hold something to learn; rows without are dropped."""
    num_chars: int = 0
    unit: str = "document"
    """What a document of the sample is called: pairs and answers with labels count as one each."""
    documents: list[SampleRow] = field(default_factory=list)
    """In the order of the rows; none where rows hold token ids."""
    read_as: SourceConfig | None = None
    """The source with the columns that were found by their usual names."""
    num_ids: int = 0
    """Tokens, where rows hold those."""
    longest_ids: int = 0
    digests: list[bytes] = field(default_factory=list)
    """Of the documents, by which some are held out."""

    @property
    def rows_read(self) -> str:
        """Return how many rows were read, in words."""
        return f"{'all' if self.is_whole else 'the first'} {many(self.num_rows, 'row')} read"

    def add(self, document: Document | Answers, as_chat: bool, place: tuple[str, str, int, Row]) -> None:
        """Count a document, or the answers of a row.

        Args:
            place: Its file, the unit that numbers its rows, its number, and the row.
        """
        if isinstance(document, IdsDocument):
            self.num_documents += bool(document.ids)
            self.digests += [content_digest(document)] if document.ids else []
            self.num_ids += len(document.ids)
            self.longest_ids = max(self.longest_ids, len(document.ids))
            return
        alone = document.documents if isinstance(document, Answers) else [document]
        said = [_said(one, as_chat) for one in alone]
        text = "\n".join(words for words, _ in said)
        self.num_chars += len(text)
        if text.strip():
            self.num_documents += 1
            self.digests.append(_digest(document))
            turns, is_peculiar = sum(count for _, count in said), any(map(_is_peculiar, alone))
            self.documents.append(SampleRow(*place, text, turns, is_peculiar))


def _said(document: Document, as_chat: bool) -> tuple[str, int]:
    """Return the words of a document, and its turns where a chat template renders it."""
    match document:
        case ChatDocument():
            return "\n".join(_words(document)), len(document.messages)
        case CompletionDocument():
            return document.prompt + document.completion, 2 if as_chat else 0
        case TextDocument():
            return document.text, 0
        case IdsDocument():
            return "", 0
        case _:
            assert_never(document)


def _digest(document: Document | Answers) -> bytes:
    """Return the digest by which a document is held out: of answers that of their prompt."""
    if not isinstance(document, Answers):
        return content_digest(_settled(document))
    first = document.documents[0]
    if isinstance(first, ChatDocument):
        return content_digest(replace(first, messages=first.messages[: document.num_asked]))
    return content_digest(TextDocument(first.prompt))


def _settled(document: Document) -> Document:
    """Return a document as `prepare` hashes it; one that it refuses as it is."""
    with contextlib.suppress(RowError):
        return (isinstance(document, ChatDocument) and settle_chat(document, Counter())) or document
    return document


def _words(document: ChatDocument) -> Iterator[str]:
    """Yield all that a chat template may write of a conversation; schemas in lines, which is their longest form."""
    if document.tools:
        yield json.dumps(document.tools, ensure_ascii=False, indent=4, default=str)
    for message in document.messages:
        for key, value in message.items():
            if isinstance(value, str):
                yield "" if key == "role" else value
            elif value:
                yield json.dumps(value, ensure_ascii=False, default=str)


@dataclass(frozen=True, slots=True)
class Guess:
    """A source as its files look."""

    source: SourceConfig
    title: str
    """What people call the layout."""
    named: dict[str, str]
    """Columns that are not those of the default names, by key."""
    read: list[str]
    """Columns that hold the documents."""
    num_files: int
    lines: list[str]
    """What was noticed."""
    holding: Holding


def guess_layout(name: str, path: str, can_chat: bool, ignore: Sequence[str], learn: LearnConfig) -> Guess:
    """Look at the first rows of files and return a source that reads them.

    Args:
        can_chat: Pairs may be rendered as a chat.
        ignore: Columns to leave unread.
        learn: What is learnt of conversations.
    Raises:
        DataError: No file is there, its rows are of no layout that is known, or one of the sample cannot be read.
    """
    asked = SourceConfig(path=path)
    listing = list_files(name, asked)
    columns: list[str] = []
    sample: Callable[[], list[Row]] = list
    for file in listing.files:
        opened = open_file(asked, file, kind_of(file))
        columns, sample = opened.columns, partial(first_rows, opened)
        if columns:
            break
    format_, title, layout = _known(columns, path, sample)
    named = {key: column for key, column in layout.items() if getattr(ColumnsConfig(), key) != column}
    source = replace(
        asked,
        format=format_,
        as_chat=can_chat and format_ in ANSWERED,
        columns=ColumnsConfig(**named, ignore=list(ignore)),
        learn=learn if format_ is Format.chat else LearnConfig(),
    )
    holding, lines = _parsed_sample(name, source, listing)
    if format_ is Format.text and holding.num_rows == 1 and holding.is_whole:
        source, holding, told = _split_one(name, source, listing, holding)
        lines += told
    read = list(layout.values())
    return Guess(source, title, named, read, len(listing.files), [*listing.lines, *lines], holding)


def _split_one(
    name: str, source: SourceConfig, listing: Listing, holding: Holding
) -> tuple[SourceConfig, Holding, list[str]]:
    """Return a source whose only document is split into paragraphs where it can be, what it holds, and why."""
    alone = "it is one document, of which none can be held out to compare the trained model with its base"
    is_txt = [kind_of(file) for file in listing.files] == ["txt"]
    if is_txt and BLANK_LINES.search(holding.documents[0].text.strip()):
        split = replace(source, txt_documents="paragraph")
        found, lines = _parsed_sample(name, split, listing)
        return split, found, [*lines, f"{alone}: split at blank lines (txt_documents: paragraph)"]
    fix = "set txt_documents: line, or give more documents" if is_txt else "give more documents"
    return source, holding, [f"{alone}: {fix}"]


def _is_peculiar(document: Document) -> bool:
    if not isinstance(document, ChatDocument):
        return False
    roles = [one["role"] for one in document.messages]
    if roles != [("user", "assistant")[turn % 2] for turn in range(len(roles))]:
        return True
    keys = {*REASONING_KEYS, "tool_calls", "function_call"}
    return bool(document.tools) or any(
        keys & set(one) or "<think>" in str(one["content"]) for one in document.messages
    )


def _known(
    columns: list[str], path: str, sample: Callable[[], list[Row]]
) -> tuple[Format, str, dict[str, str]]:
    for format_ in (*PREFERENCES, *ORDER):
        for title, layout in LAYOUTS[format_]:
            if set(layout.values()) <= set(columns) and _has_labels(layout, sample):
                return format_, title, layout
    if not columns:
        raise _no_rows(path)
    titles = ", ".join(dict.fromkeys(title for format_ in ORDER for title, _ in LAYOUTS[format_]))
    pairs_too = "prompt, chosen and rejected, prompt, completion and label"
    texts = text_columns(columns, sample(), 2)
    wanted = ("text",) if len(texts) == 1 else ("prompt", "completion")
    pairs = [f"{column} to {name}" for column, name in zip(texts, wanted, strict=False)]
    such = f", such as {' and '.join(pairs)}," if pairs else ""
    raise DataError(
        f"`data` must hold rows of a known layout ({titles}, {pairs_too}), but '{path}' has the columns "
        f"[{', '.join(columns)}] instead. Rename columns{such} or write a source of your own: palimpsest explain "
        "data.sources.NAME.columns."
    )


def _has_labels(layout: dict[str, str], sample: Callable[[], list[Row]]) -> bool:
    """Tell whether the label of a layout, where it has one, is true or false in the first rows: others are classes."""
    column = layout.get("label")
    if column is None:
        return True
    return all(
        isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in ("true", "false"))
        for value in (row.get(column) for row in sample())
    )


def _no_rows(path: str) -> DataError:
    return DataError(f"`data` must hold rows, but '{path}' has no row instead. Give files that hold some.")


def _parsed_sample(name: str, source: SourceConfig, listing: Listing) -> tuple[Holding, list[str]]:
    """Read and parse the first rows; return what they hold and what was noticed."""
    rows = read_files(name, replace(source, max_documents=SAMPLE_ROWS), listing)
    counts: Counter[str] = Counter()
    unit = {Format.preference: "pair", Format.unpaired: "answer"}.get(source.format, "document")
    holding = Holding(read_as=rows.source, unit=unit)
    for batch in rows.batches():
        for number, row in zip(batch.numbers, batch.rows, strict=True):
            holding.num_rows += 1
            try:
                parse = parse_answers if source.holds_preferences else parse_row
                document = parse(row, rows.source, counts)
            except RowError as error:
                where = f"{batch.file}, {batch.unit} {number},"
                raise DataError(
                    f"`data` must {error.rule}, but {where} is {error.value} instead. {error.fix}"
                ) from error
            if document is not None:
                holding.add(document, source.as_chat, (str(batch.file), batch.unit, number, row))
        if holding.num_chars > SAMPLE_CHARS:
            break
    holding.is_whole = holding.num_rows < SAMPLE_ROWS and holding.num_chars <= SAMPLE_CHARS
    if not holding.num_rows:
        raise _no_rows(str(source.path))
    told = [
        f"{count} of the first {many(holding.num_rows, 'row')}: {what.replace('_', ' ')}"
        for what, count in counts.items()
        if count
    ]
    if holding.is_whole and not holding.num_documents:
        why = f": {'; '.join(told)}" if told else ""
        raise DataError(
            f"`data` must hold rows that something is learnt of, but '{source.path}' has none{why}. Mend the rows."
        )
    return holding, [*rows.reading.lines, *told]
