"""Turns batches of rows of preferences into units: answers that begin with the same tokens, kept or dropped whole.

Every answer is rendered and encoded by what encodes any document. The prompt is what stands before the first learnt
character, and has the same tokens in all answers of a row: where tokens would reach over its end, the text is cut
there, as it is where a model is asked.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from trainer.config.data import SourceConfig, TokenValue
from trainer.data.chat.calls import check_calls
from trainer.data.chat.mark import Marked, mark_chat, mark_completion
from trainer.data.chat.quoted import quoted_cuts
from trainer.data.chat.rendering import ADAPT
from trainer.data.chat.settle import LEARN, settle_chat
from trainer.data.chat.traits import traits_of
from trainer.data.rows.clean import DIGEST_BYTES, clean_document, content_digest
from trainer.data.rows.message import short
from trainer.data.rows.preferred import parse_answers
from trainer.data.store.held_back import HASH_BYTES
from trainer.data.tokens.encoded import Encoded, encode_marked, encoded_of
from trainer.data.types import (
    Answers,
    ChatDocument,
    CompletionDocument,
    Dropped,
    EncodedBatch,
    RowBatch,
    RowDropped,
    RowError,
    RowProblem,
    TokenizerLike,
)

Side = CompletionDocument | ChatDocument
CAUSES = ("no_answer", "too_short", "too_long", "not_learnt")
"""Counts of one answer that drop all of its row."""


@dataclass(slots=True)
class _Unit:
    """The answers of a row, ready to be encoded."""

    place: str
    sides: list[Side]
    marked: list[Marked]
    is_desirable: bool | None


def encode_answers(
    batch: RowBatch,
    source: SourceConfig,
    adds_eos: bool,
    tokenizer: TokenizerLike,
    values: Sequence[TokenValue] = (),
) -> EncodedBatch:
    """Parse, clean and tokenise the rows of a batch; rows that cannot be used become problems.

    Counts:
        Those of `parse_answers`; empty_side, equal_sides, too_short, too_long, not_learnt, quoted_dropped,
        merged_prompts: rows dropped; cut_prompts: those cut where the answer begins; desirable, undesirable: answers.
    """
    counts: Counter[str] = Counter(rows=len(batch.rows))
    problems: list[RowProblem] = []
    dropped: list[Dropped] = []
    units: list[_Unit] = []
    for index, row in enumerate(batch.rows):
        try:
            answers = parse_answers(row, source, counts)
            unit = None if answers is None else _ready(answers, batch.where(index), source, tokenizer, counts)
        except RowError as error:
            problems.append(RowProblem(error.rule, error.value, error.fix, batch.where(index)))
            continue
        except RowDropped as left_out:
            counts[left_out.cause] += 1
            dropped.append(Dropped(left_out.cause, left_out.shown, batch.where(index)))
            continue
        if unit is not None:
            units.append(unit)
    names = [value.value for value in values]
    sides = [side for unit in units for side in unit.sides]
    marked = [one for unit in units for one in unit.marked]
    encoded = iter(encode_marked(sides, marked, adds_eos, tokenizer, Counter(), names))
    kept: list[tuple[_Unit, list[Encoded]]] = []
    for unit in units:
        found = _with_one_prompt(
            unit, [next(encoded) for _ in unit.sides], adds_eos, tokenizer, counts, names
        )
        if found is not None:
            kept.append((unit, found))
            counts["desirable"] += unit.is_desirable is True
            counts["undesirable"] += unit.is_desirable is False
    pieces = [piece for _, found in kept for piece in found]
    return EncodedBatch(
        tokens=np.array([token for piece in pieces for token in piece.ids], dtype=np.uint32),
        supervised=np.concatenate([np.empty(0, np.uint8), *(piece.mark for piece in pieces)]),
        lengths=np.array([len(piece.ids) for piece in pieces], dtype=np.int32),
        unit_pieces=np.array([len(found) for _, found in kept], dtype=np.int32),
        digests=[_digest(unit) for unit, _ in kept],
        places=[unit.place for unit, _ in kept],
        values={
            name: np.concatenate([np.empty(0, np.float32), *(piece.values[name] for piece in pieces)])
            for name in names
        },
        traits=[traits_of(unit.sides[0], source.learn) for unit, _ in kept],
        counts=counts,
        problems=problems,
        dropped=dropped,
    )


def _ready(
    answers: Answers, place: str, source: SourceConfig, tokenizer: TokenizerLike, counts: Counter[str]
) -> _Unit | None:
    """Settle, clean and mark the answers of a row; None if it is dropped.

    What is met in a prompt is met in each of its answers, and is counted once.
    """
    met = [Counter[str]() for _ in answers.documents]
    sides: list[Side] = []
    for number, document in enumerate(answers.documents):
        is_better = number == 0 if answers.is_desirable is None else answers.is_desirable
        side = _cleaned(document, answers.num_asked, source, met[number], is_better)
        if side is None:
            counts[_cause(met[number])] += 1
            return None
        side.values = {
            TokenValue.label.value: 1.0 if is_better else -1.0,
            TokenValue.weight.value: 1.0,
            TokenValue.margin.value: answers.margin,
        }
        sides.append(side)
    if len(sides) == 2 and content_digest(sides[0]) == content_digest(sides[1]):
        counts["equal_sides"] += 1
        return None
    marks: list[Marked] = []
    for side, seen in zip(sides, met, strict=True):
        marked = _marked(side, tokenizer, source, seen)
        if marked is None:
            counts[_cause(seen)] += 1
            return None
        marks.append(marked)
    if len({marked.text[: marked.spans[0][0]] for marked in marks}) > 1:
        rule = "hold prompts that the chat template writes alike before both answers"
        raise RowError(rule, f"one that ends {short(marks[0].text[: marks[0].spans[0][0]][-60:])}", ADAPT)
    for key in set().union(*met):
        counts[key] += max(seen[key] for seen in met)
    return _Unit(place, sides, marks, answers.is_desirable)


def _cause(seen: Counter[str]) -> str:
    """Return why a row is dropped, as it is counted."""
    cause = next(cause for cause in CAUSES if seen[cause])
    return "empty_side" if cause == "no_answer" else cause


def _cleaned(
    document: Side, num_asked: int, source: SourceConfig, seen: Counter[str], is_better: bool
) -> Side | None:
    """Settle and clean an answer with its prompt, of which nothing is learnt; None if it is dropped.

    Tool calls of a worse answer may be what is worse of it.
    """
    if isinstance(document, ChatDocument):
        settled = settle_chat(document, seen)
        if settled is None or len(settled.messages) <= num_asked:
            seen["no_answer"] = 1
            return None
        checked = settled if is_better else replace(settled, messages=settled.messages[:num_asked])
        check_calls(checked, source.learn.tool_calls, seen)
        asked = [{**message, LEARN: False} for message in settled.messages[:num_asked]]
        document = replace(settled, messages=[*asked, *settled.messages[num_asked:]])
    found = clean_document(document, source.clean, seen)
    assert found is None or isinstance(found, CompletionDocument | ChatDocument)
    return found


def _marked(side: Side, tokenizer: TokenizerLike, source: SourceConfig, seen: Counter[str]) -> Marked | None:
    if isinstance(side, CompletionDocument):
        return mark_completion(side.prompt, side.completion)
    return mark_chat(side, tokenizer, source.learn, seen)


def _with_one_prompt(
    unit: _Unit,
    encoded: list[Encoded],
    adds_eos: bool,
    tokenizer: TokenizerLike,
    counts: Counter[str],
    names: Sequence[str],
) -> list[Encoded] | None:
    """Return the answers with one prompt, token for token; None if the row is dropped."""
    if not all(one.ids for one in encoded):
        counts["quoted_dropped"] += 1
        return None
    counts["quoted_tokens"] += any(quoted_cuts(marked, tokenizer) for marked in unit.marked)
    first = unit.marked[0].spans[0][0]
    prompts = [_prompt_of(one) for one in encoded]
    alone = tokenizer.encode_fragments([unit.marked[0].text[:first]])[0]
    if any(prompt != prompts[0] for prompt in prompts) or prompts[0][-len(alone) :] != alone:
        counts["cut_prompts"] += 1
        encoded = []
        for side, marked in zip(unit.sides, unit.marked, strict=True):
            tokens = tokenizer.encode_spelled(marked.text, [*quoted_cuts(marked, tokenizer), first])
            if tokens is None:
                counts["merged_prompts"] += 1
                return None
            encoded.append(encoded_of(side, marked, tokens, adds_eos, tokenizer, names))
        prompts = [_prompt_of(one) for one in encoded]
    assert all(prompt == prompts[0] for prompt in prompts), "a prompt that is cut off has other tokens"
    if len(encoded) == 2 and encoded[0].ids == encoded[1].ids:
        counts["equal_sides"] += 1
        return None
    return encoded


def _prompt_of(encoded: Encoded) -> list[int]:
    """Return the tokens before the first that is learnt."""
    return encoded.ids[: int(encoded.mark.argmax())]


def _digest(unit: _Unit) -> bytes:
    """Name the content of a row; the part by which it is held out or not is that of its prompt.

    So rows of one prompt are all held out or all trained on, whatever their answers.
    """
    asked = unit.marked[0].text[: unit.marked[0].spans[0][0]]
    prompt = hashlib.sha256(asked.encode("utf-8", errors="surrogatepass")).digest()[:HASH_BYTES]
    answers = hashlib.sha256(b"".join(map(content_digest, unit.sides))).digest()
    return prompt + answers[: DIGEST_BYTES - HASH_BYTES]
