"""The shapes that pass between the stages of the data room.

Documents before the tokenizer, encoded batches after it, packs out of the store, and what a tokenizer
must be able to do. No I/O here, and no import of `datasets` or `transformers`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import compress
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Message = dict[str, Any]
Span = tuple[int, int]
Offsets = list[Span]
Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Uint32s = npt.NDArray[np.uint32]


class Unit(Enum):
    """What a pack keeps whole: pieces that each see only themselves and stand side by side."""

    document = "document"
    """One piece; of a document that is cut at the end of a pack, each part is one."""
    pair = "pair"
    """Two pieces: a chosen and a rejected answer, each after the prompt."""
    answer = "answer"
    """One piece, which is never cut: an answer with a label, after its prompt."""
    group = "group"
    """Several answers to one prompt, each after it."""


class TokenizerLike(Protocol):
    """What the data room asks of a tokenizer; `trainer.model.tokenizer.Tokenizer` is one."""

    @property
    def digest(self) -> str:
        """Hash of everything that decides token ids and chat rendering."""

    @property
    def vocab_size(self) -> int:
        """Largest token id plus one."""

    @property
    def bos_id(self) -> int | None:
        """Id of the token that begins documents, if there is one."""

    @property
    def eos_id(self) -> int | None:
        """Id of the token that ends documents, if there is one."""

    @property
    def pad_id(self) -> int | None:
        """Id that fills masked positions; other than EOS where the tokenizer has another."""

    @property
    def adds_bos(self) -> bool:
        """Whether raw documents of this tokenizer begin with BOS."""

    @property
    def turn_end(self) -> str | None:
        """The token that the chat template writes behind an answer, if it does."""

    @property
    def has_chat_template(self) -> bool:
        """Whether render_chat can be used."""

    def encode_documents(self, texts: list[str]) -> list[list[int]]:
        """Encode raw documents: BOS once if the tokenizer adds it, never EOS."""

    def encode_fragments(self, texts: list[str]) -> list[list[int]]:
        """Encode without adding special tokens; those spelled out in a text are recognised."""

    def encode_with_offsets(self, texts: list[str]) -> list[tuple[list[int], Offsets]]:
        """Encode without adding special tokens; give each token its characters [start, end)."""

    def encode_behind(self, texts: list[str], places: list[int]) -> list[tuple[list[int], int | None]]:
        """Encode without adding special tokens; count the tokens that end before or at a place, None if not known."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Return the ids of tokens that are no text."""

    @property
    def special_texts(self) -> frozenset[str]:
        """How tokens that stand for no text are spelled."""

    def encode_spelled(self, text: str, cuts: list[int]) -> tuple[list[int], Offsets] | None:
        """Encode like encode_with_offsets, with the text cut at some characters; None if a cut changes the text."""

    def __hash__(self) -> int:
        """Tell tokenizers apart."""

    def render_chat(
        self,
        messages: list[Message],
        tools: list[Any] | None = None,
        add_generation_prompt: bool = False,
    ) -> str:
        """Render a conversation with the chat template.

        Raises:
            DataError: If the template refuses the conversation.
        """

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids, special tokens included."""


@dataclass(slots=True)
class RowBatch:
    """Some consecutive rows of one file; `numbers` are the 1-based lines or rows they came from."""

    file: str
    unit: str
    numbers: list[int]
    rows: list[dict[str, Any]]

    def where(self, index: int) -> str:
        """Name the place of a row, as messages print it."""
        return f"{self.file}, {self.unit} {self.numbers[index]}"


@dataclass(slots=True)
class TextDocument:
    """A text, supervised throughout."""

    text: str
    values: dict[str, float] = field(default_factory=dict)
    """Declared numbers, by name; of every supervised token of the document."""


@dataclass(slots=True)
class CompletionDocument:
    """A prompt that is not supervised and a completion that is."""

    prompt: str
    completion: str
    values: dict[str, float] = field(default_factory=dict)
    """As of a text."""


@dataclass(slots=True)
class ChatDocument:
    """A conversation; the assistant's turns are supervised."""

    messages: list[Message]
    tools: list[Any] | None = None
    values: dict[str, float] = field(default_factory=dict)
    """As of a text, for turns that say nothing else."""
    turn_values: dict[int, dict[str, float]] = field(default_factory=dict)
    """Numbers of the turns that say their own, by the turn's place."""


@dataclass(slots=True)
class IdsDocument:
    """Token ids made elsewhere; `loss_mask` None means all are supervised."""

    ids: list[int]
    loss_mask: list[int] | None = None
    values: dict[str, float] = field(default_factory=dict)
    """As of a text."""


Document = TextDocument | CompletionDocument | ChatDocument | IdsDocument


@dataclass(slots=True)
class Answers:
    """Answers to one prompt, each a document that begins with it: a chosen and a rejected one, or one with a label."""

    documents: Sequence[CompletionDocument | ChatDocument]
    """Nothing but the answers is supervised."""
    num_asked: int = 0
    """Turns of the prompt, the same in all; of conversations."""
    is_desirable: bool | None = None
    """The label of a single answer."""
    margin: float = 0.0
    """By how much the first of two has to be ahead."""


class RowError(Exception):
    """A row that cannot be used: the rule it breaks, what it holds, and the fix, as sentence parts."""

    def __init__(self, rule: str, value: str, fix: str) -> None:
        super().__init__(rule, value, fix)
        self.rule = rule
        self.value = value
        self.fix = fix


class RowDropped(Exception):
    """A row that its source's options leave out: how that is counted, and what of the row is shown."""

    def __init__(self, cause: str, shown: str) -> None:
        super().__init__(cause, shown)
        self.cause = cause
        self.shown = shown


@dataclass(frozen=True, slots=True)
class Dropped:
    """A RowDropped and where it happened."""

    cause: str
    shown: str
    where: str


TEMPLATE_FAILS = "hold only conversations on which the chat template does not fail"
"""The rule of rows that may be sound, and the template is not."""


@dataclass(frozen=True, slots=True)
class RowProblem:
    """A RowError and where it happened; counted by rule before one sentence is printed."""

    rule: str
    value: str
    fix: str
    where: str


def problems_said(key: str, problems: Sequence[RowProblem], counts: Counter[str], of: str) -> str:
    """Return a sentence for every rule that rows break, with the first row that does.

    Args:
        problems: The first of each rule.
        counts: Rows that break a rule.
        of: The rows that were read, in words.
    """
    return " ".join(
        f"{key if one is problems[0] else 'It'} must {one.rule}, but {_not(counts[one.rule], of)}; the first is "
        f"{one.where}, with {one.value}. {one.fix}"
        for one in problems
    )


def _not(count: int, of: str) -> str:
    return f"{count} of {of} {'does' if count == 1 else 'do'} not"


@dataclass(slots=True)
class EncodedBatch:
    """The units of a row batch as flat arrays, and what happened to those that are missing.

    Shapes:
        tokens, supervised: [T], the pieces one after the other; lengths: [P] sums to T; unit_pieces: [U] sums to P.
    """

    tokens: Uint32s
    supervised: Bytes
    lengths: Int32s
    """Tokens of each piece."""
    unit_pieces: Int32s
    """Pieces of each unit."""
    digests: list[bytes]
    """Content digest of each unit."""
    places: list[str]
    """Where each unit came from, for messages."""
    values: dict[str, Float32s] = field(default_factory=dict)
    """Declared numbers of the tokens, [T], by name."""
    traits: list[tuple[str, ...]] = field(default_factory=list)
    """What the row of each unit has that not every row has, in words; of conversations."""
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[RowProblem] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    """Rows that were left out, or noted, of the causes that are told with samples; they are among `counts`."""
    signatures: list[Uint32s] = field(default_factory=list)
    """MinHash values of each unit, where near-duplicates are looked for; else empty."""

    def only(self, keep: Bools) -> EncodedBatch:
        """Return some of the units, without what was counted of the rows."""
        kept_pieces = np.repeat(keep, self.unit_pieces)
        kept_tokens = np.repeat(kept_pieces, self.lengths)
        return replace(
            self,
            tokens=self.tokens[kept_tokens],
            supervised=self.supervised[kept_tokens],
            lengths=self.lengths[kept_pieces],
            unit_pieces=self.unit_pieces[keep],
            digests=list(compress(self.digests, keep)),
            places=list(compress(self.places, keep)),
            values={name: values[kept_tokens] for name, values in self.values.items()},
            traits=list(compress(self.traits, keep)),
            signatures=[],
            counts=Counter(),
            problems=[],
            dropped=[],
        )


@dataclass(slots=True)
class Pack:
    """What one sequence of a batch holds: real tokens only, no padding.

    Shapes:
        tokens: int64 [n], supervised: bool [n], n <= seq_len; lengths of the isolated pieces sum to n.
    """

    tokens: Int64s
    supervised: Bools
    lengths: list[int]
    unit_pieces: list[int] | None = None
    """Pieces of each unit, in order; None where every piece is one."""
    values: dict[str, Float32s] = field(default_factory=dict)
    """Numbers of the tokens, [n], by name."""
    prefixes: list[int] | None = None
    """How many tokens of its unit's first piece each piece sees before its own; None where none sees any."""
