"""Tokens of the rows that `palimpsest init` read: as `prepare` will count them where the tokenizer is here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainer.config.data import SourceConfig
from trainer.config.many import many
from trainer.config.model import ModelConfig
from trainer.data.chat.shape import why_always_failing
from trainer.data.rows.guess import Guess, SampleRow
from trainer.data.types import RowBatch, RowProblem, TokenizerLike
from trainer.errors import DataError, ModelError

CHARS_A_TOKEN = 3
"""Where no tokenizer is here; a little less than English has, so that more tokens are expected than there are."""
TEMPLATE_TOKENS, TURN_TOKENS = 64, 16
"""Room for what a chat template writes of its own, and for what it writes around a turn, where it cannot be asked."""
ENDS_TOKENS = 2
"""Room for the tokens that begin and end a document."""
BY_WORDS = {
    "et learn.reasoning of the source to ": "ive reasoning=",
    "et model.chat_template to": "ive chat_template=FILE,",
    "et model.chat_template.": "ive chat_template=FILE.",
}
"""How a fix begins that names keys of a configuration, and how with the words of `palimpsest init`: Set or set, Give or
give."""
MAX_CHARS = 1_000_000
"""Characters of the longest document that are encoded; the rest is taken to be like them."""
COUNTED_CHARS = 4_000_000
"""Characters of all documents that are encoded, the longest first; others are taken to be like them."""
NUM_RENDERED = 64
"""Rows that are rendered and encoded as `prepare` does it: so many peculiar ones, and so many spread over all."""
NUM_AT_ONCE = 16
"""The longest of the others are rendered next, so many at once, until none is expected to be longer than those."""
RENDERED_CHARS = 4_000_000
"""Characters of all rows that are rendered, which takes two seconds a million."""

Count = Callable[[Sequence[str]], list[int]]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of the data."""

    longest: int
    total: int
    is_counted: bool
    """Whether the model's tokenizer was asked."""
    template: str = ""
    """How the chat template is in these numbers, in words; empty where none is used."""
    lengths: list[int] = field(default_factory=list)
    """Of each document, as far as they are known."""
    notes: tuple[str, ...] = ()
    """What a person should know of how they were counted."""


def count_tokens(folder: Path | None, chat_template: str, guess: Guess, is_bytes: bool = False) -> Tokens:
    """Return the tokens of what was read; loads torch only where a chat template is rendered.

    Args:
        folder: That of the model; None where it is not here.
        chat_template: A file that takes the place of the model's own; empty for that.
        is_bytes: The model's tokens are bytes.
    Raises:
        DataError: `prepare` would refuse rows of those that were rendered.
        ModelError: The chat template does not come to an end, or fails on every conversation.
    """
    holding = guess.holding
    if holding.num_ids:
        return Tokens(holding.longest_ids, holding.num_ids, True)
    rows = holding.documents
    count = _counter(folder, is_bytes)
    raw = [_expected(row.text) for row in rows] if count is None else _counted(rows, count)
    if not any(row.num_turns for row in rows):
        return _summed(raw, count is not None)
    tokenizer, notes = _tokenizer(folder, chat_template)
    if tokenizer is not None:
        if (why := why_always_failing(tokenizer)) is not None:
            raise ModelError(
                "`chat_template` must render a conversation, but fails on a short one, with a system turn and without: "
                f"{why}. Mend it there, or give chat_template=FILE."
            )
        return _summed(_rendered(tokenizer, guess, raw), True, " with the chat template")
    more = [TEMPLATE_TOKENS + TURN_TOKENS * row.num_turns for row in rows]
    lengths = [one + other for one, other in zip(raw, more, strict=True)]
    return _summed(lengths, count is not None, ", with room for a chat template", notes)


def _summed(lengths: list[int], is_counted: bool, template: str = "", notes: tuple[str, ...] = ()) -> Tokens:
    return Tokens(max(lengths, default=0), sum(lengths), is_counted, template, lengths, notes)


def _tokenizer(folder: Path | None, chat_template: str) -> tuple[TokenizerLike | None, tuple[str, ...]]:
    """Return what renders conversations, or None and why not: code of its own is only run where it is trusted."""
    if folder is None:
        return None, ()
    from trainer.model.tokenizer import configured_tokenizer

    try:
        return configured_tokenizer(ModelConfig(chat_template=chat_template or None), str(folder)), ()
    except ModelError as error:
        return None, (f"The chat template was not asked, so that rows may be longer. {error}",)


def _counter(folder: Path | None, is_bytes: bool) -> Count | None:
    """Return what counts the tokens of texts without torch; None where no tokenizer.json is here."""
    if is_bytes:
        return lambda texts: [len(text.encode()) for text in texts]
    file = folder / "tokenizer.json" if folder is not None else None
    if file is None or not file.is_file():
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    return lambda texts: [len(one.ids) for one in tokenizer.encode_batch(texts, add_special_tokens=False)]


def _expected(text: str) -> int:
    """Return tokens of a text that no tokenizer was asked about; a letter of another script may be one of its own."""
    num_ascii = len(text) if text.isascii() else len(text.encode("ascii", "ignore"))
    return math.ceil(num_ascii / CHARS_A_TOKEN) + len(text) - num_ascii


def _counted(rows: Sequence[SampleRow], count: Count) -> list[int]:
    """Return the tokens of each text, the longest counted and the others reckoned from them."""
    sizes = [len(row.text.encode()) for row in rows]
    order = sorted(range(len(rows)), key=lambda index: -sizes[index])
    found, num_chars, num_tokens, num_bytes = [0] * len(rows), 0, 0, 0
    for start in range(0, len(order), NUM_RENDERED):
        some = order[start : start + NUM_RENDERED]
        if num_chars > COUNTED_CHARS:
            for index in some:
                found[index] = math.ceil(sizes[index] * num_tokens / num_bytes)
            continue
        shown = [rows[index].text[:MAX_CHARS] for index in some]
        for index, text, number in zip(some, shown, count(shown), strict=True):
            found[index] = math.ceil(number * len(rows[index].text) / len(text))
            num_chars, num_tokens, num_bytes = (
                num_chars + len(text),
                num_tokens + number,
                num_bytes + sizes[index],
            )
    return found


@dataclass(slots=True)
class _Rendered:
    """Rows that were rendered and encoded as `prepare` does it."""

    rows: Sequence[SampleRow]
    source: SourceConfig
    tokenizer: TokenizerLike
    known: dict[int, int] = field(default_factory=dict)
    """Tokens of a row, 0 where it is dropped."""
    problems: list[RowProblem] = field(default_factory=list)
    num_chars: int = 0

    def ask(self, wanted: Sequence[int]) -> bool:
        """Encode rows as far as there is time for more; return whether there was any."""
        from trainer.data.tokens.tokenise import encode_batch

        num_known = len(self.known)
        for index in wanted:
            one = self.rows[index]
            if index in self.known or self.num_chars + len(one.text) > RENDERED_CHARS:
                continue
            batch = RowBatch(one.file, one.unit, [one.number], [one.row])
            encoded = encode_batch(batch, self.source, False, self.tokenizer)
            self.problems += encoded.problems
            self.known[index] = len(encoded.tokens)
            self.num_chars += len(one.text)
        return len(self.known) > num_known

    def expected(self, raw: Sequence[int]) -> list[int]:
        """Return the tokens of every row: of those that were not asked about with what the others got around a turn."""
        around = {}
        for kind in (False, True):
            some = [
                index for index in self.known if self.rows[index].is_peculiar is kind and self.known[index]
            ]
            added = sum(self.known[index] - raw[index] for index in some)
            turns = sum(self.rows[index].num_turns for index in some)
            around[kind] = added / turns if turns else TURN_TOKENS
        return [
            self.known.get(index, max(math.ceil(number + row.num_turns * around[row.is_peculiar]), 0))
            for index, (number, row) in enumerate(zip(raw, self.rows, strict=True))
        ]


def _rendered(tokenizer: TokenizerLike, guess: Guess, raw: list[int]) -> list[int]:
    """Return the tokens of each row: some of all kinds and the longest as `prepare` counts, others reckoned from them.

    Raises:
        DataError: Names one row of every kind that is refused, and the fix.
    """
    rows = guess.holding.documents
    rendered = _Rendered(rows, guess.holding.read_as or guess.source, tokenizer)
    rendered.ask([index for index, row in enumerate(rows) if row.is_peculiar][:NUM_RENDERED])
    rendered.ask(range(0, len(rows), max(len(rows) // NUM_RENDERED, 1)))
    while not rendered.problems:
        lengths = rendered.expected(raw)
        longest = max(rendered.known.values(), default=0)
        longer = [index for index, length in enumerate(lengths) if length > longest or not rendered.known]
        if not rendered.ask(sorted(longer, key=lambda index: -lengths[index])[:NUM_AT_ONCE]):
            return lengths
    tried = f"{len(rendered.problems)} of {many(len(rendered.known), 'row')}"
    raise DataError(
        f"`data` must hold rows that the model's chat template renders, but it does not render {tried} that were tried:"
        f"{''.join(_by_kind(rendered.problems))}"
    )


def _by_kind(problems: Sequence[RowProblem]) -> Iterator[str]:
    """Yield a line for every kind of rows that are refused: the first of them, how many more there are, and the fix."""
    kinds: dict[tuple[str, str], list[RowProblem]] = {}
    for one in problems:
        kinds.setdefault((one.rule, one.fix), []).append(one)
    for (rule, fix), found in kinds.items():
        more = f" and {many(len(found) - 1, 'more row')}" if len(found) > 1 else ""
        for keys, words in BY_WORDS.items():
            fix = fix.replace(f"S{keys}", f"G{words}").replace(f"s{keys}", f"g{words}")
        yield f"\n  - {found[0].where}{more}: {found[0].value}. A row must {rule}. {fix}"
