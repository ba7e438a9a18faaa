"""Turns batches of rows into batches of token ids with marks of what is supervised; in parallel if asked.

The order of the batches is kept, so that the number of processes never changes a store.
"""

from __future__ import annotations

import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import chain
from multiprocessing import forkserver, get_context, parent_process
from typing import assert_never

import numpy as np

from trainer.config.curate import Contaminated, CurateConfig
from trainer.config.data import CleanConfig, SourceConfig, TokenValue
from trainer.data.chat.calls import check_calls
from trainer.data.chat.mark import Marked, mark_chat, mark_completion
from trainer.data.chat.settle import settle_chat
from trainer.data.chat.traits import traits_of
from trainer.data.rows.clean import clean_document, content_digest
from trainer.data.rows.contaminated import find_overlap
from trainer.data.rows.document import parse_row
from trainer.data.rows.language import refuse_language
from trainer.data.rows.minhash import signature_of
from trainer.data.rows.quality import refuse_low_quality, text_of
from trainer.data.rows.weight import WEIGHT
from trainer.data.tokens.encoded import Encoded, Marks, add_end, encode_completions, encode_marked
from trainer.data.tokens.sides import encode_answers
from trainer.data.tokens.spans import value_tokens
from trainer.data.types import (
    ChatDocument,
    CompletionDocument,
    Document,
    Dropped,
    EncodedBatch,
    IdsDocument,
    RowBatch,
    RowDropped,
    RowError,
    RowProblem,
    TextDocument,
    TokenizerLike,
    Uint32s,
)
from trainer.errors import DataError, Exit

Encode = Callable[[RowBatch], EncodedBatch]

PARALLEL_BYTES = 8 << 20
"""Smaller sources are tokenised in this process: starting others takes longer."""
PRELOADED = ("trainer.data.tokens.tokenise", "trainer.model.tokenizer")
"""By name: workers get their tokenizer from whoever asks for one."""


@dataclass(slots=True)
class _Rows:
    """The documents of a batch of rows, and what became of the other rows."""

    counts: Counter[str]
    documents: list[Document] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    pending: list[Marked] = field(default_factory=list)
    """What is learnt of each, where they are no texts or ids."""
    problems: list[RowProblem] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)

    def note(self, what: RowDropped, where: str) -> None:
        """Count a row that is left out, or told of, and keep it."""
        self.counts[what.cause] += 1
        self.dropped.append(Dropped(what.cause, what.shown, where))


def encode_batch(
    batch: RowBatch,
    source: SourceConfig,
    adds_eos: bool,
    tokenizer: TokenizerLike,
    values: Sequence[TokenValue] = (),
) -> EncodedBatch:
    """Parse, clean and tokenise the rows of a batch; rows that cannot be used become problems.

    Args:
        values: Numbers that every token gets.
    """
    if source.holds_preferences:
        return encode_answers(batch, source, adds_eos, tokenizer, values)
    read = _take_rows(batch, source, tokenizer, values)
    documents, counts = read.documents, read.counts
    names = [value.value for value in values]
    encoded = _encode(documents, read.pending, adds_eos, tokenizer, counts, names)
    kept = [i for i, found in enumerate(encoded) if found.ids]
    counts["empty"] += len(encoded) - len(kept) - counts["quoted_dropped"]
    lengths = np.array([len(encoded[i].ids) for i in kept], dtype=np.int32)
    return EncodedBatch(
        tokens=np.fromiter(chain.from_iterable(encoded[i].ids for i in kept), np.uint32, int(lengths.sum())),
        supervised=np.concatenate([np.empty(0, np.uint8), *(encoded[i].mark for i in kept)]),
        lengths=lengths,
        unit_pieces=np.ones(len(kept), dtype=np.int32),
        digests=[content_digest(documents[i]) for i in kept],
        places=[read.places[i] for i in kept],
        values={
            name: np.concatenate([np.empty(0, np.float32), *(encoded[i].values[name] for i in kept)])
            for name in names
        },
        traits=[traits_of(documents[i], source.learn) for i in kept],
        counts=counts,
        problems=read.problems,
        dropped=read.dropped,
        signatures=_signatures([documents[i] for i in kept], source),
    )


def _take_rows(
    batch: RowBatch, source: SourceConfig, tokenizer: TokenizerLike, values: Sequence[TokenValue]
) -> _Rows:
    """Parse, clean and mark the rows of a batch."""
    found = _Rows(Counter(rows=len(batch.rows)))
    for index, row in enumerate(batch.rows):
        where = batch.where(index)
        try:
            noted: list[RowDropped] = []
            document = _read(row, source, found.counts, values, noted)
            if document is None:
                continue
            for one in noted:
                found.note(one, where)
            if not isinstance(document, IdsDocument | TextDocument):
                marked = _mark(document, tokenizer, source, found.counts)
                if marked is None:
                    continue
                found.pending.append(marked)
        except RowError as error:
            found.problems.append(RowProblem(error.rule, error.value, error.fix, where))
            continue
        except RowDropped as left_out:
            found.note(left_out, where)
            continue
        found.documents.append(document)
        found.places.append(where)
    return found


def _signatures(documents: Sequence[Document], source: SourceConfig) -> list[Uint32s]:
    """Return what near-duplicates are found by, where they are looked for."""
    if source.curate.near_duplicates is None:
        return []
    return [signature_of(text_of(document)) for document in documents]


def _read(
    row: dict[str, object],
    source: SourceConfig,
    counts: Counter[str],
    values: Sequence[TokenValue],
    noted: list[RowDropped],
) -> Document | None:
    """Return the settled and cleaned document of a row, None if it is dropped; `noted` is what is told of one kept."""
    document: Document | None = parse_row(row, source, counts, values)
    if isinstance(document, ChatDocument):
        document = settle_chat(document, counts)
        if document is not None:
            check_calls(document, source.learn.tool_calls, counts)
    if document is not None and document.values.get(WEIGHT) == 0:
        counts["zero_weight"] += 1
        return None
    clean: CleanConfig = source.clean
    document = None if document is None else clean_document(document, clean, counts)
    if document is not None and source.curate.is_on:
        _curate(text_of(document), source.curate, noted)
    return document


def _curate(text: str, rules: CurateConfig, noted: list[RowDropped]) -> None:
    refuse_low_quality(text, rules)
    if rules.languages:
        refuse_language(text, rules.languages)
    overlap = find_overlap(text, tuple(rules.against), rules.ngram) if rules.against else None
    if overlap is None:
        return
    if rules.contaminated is Contaminated.drop:
        raise RowDropped("contaminated", overlap)
    noted.append(RowDropped("contaminated_kept", overlap))


def _mark(
    document: CompletionDocument | ChatDocument,
    tokenizer: TokenizerLike,
    source: SourceConfig,
    counts: Counter[str],
) -> Marked | None:
    match document:
        case CompletionDocument(prompt, completion):
            return mark_completion(prompt, completion)
        case ChatDocument():
            return mark_chat(document, tokenizer, source.learn, counts)
        case _:
            assert_never(document)


def _encode(
    documents: list[Document],
    pending: list[Marked],
    adds_eos: bool,
    tokenizer: TokenizerLike,
    counts: Counter[str],
    names: list[str],
) -> list[Encoded]:
    # The documents of a source are all of one kind.
    texts = [d.text for d in documents if isinstance(d, TextDocument)]
    if texts:
        found = tokenizer.encode_documents(texts)
        add_end(found, adds_eos, tokenizer)
        marked = [(ids, np.ones(len(ids), np.uint8)) for ids in found]
    elif pending and isinstance(documents[0], CompletionDocument):
        return encode_completions(documents, pending, adds_eos, tokenizer, names)
    elif pending:
        return encode_marked(documents, pending, adds_eos, tokenizer, counts, names)
    else:
        marked = [_given(d) for d in documents if isinstance(d, IdsDocument)]
        counts["ends_with_eos"] += sum(ids[-1:] == [tokenizer.eos_id] for ids, _ in marked)
    return [
        Encoded(ids, mark, value_tokens(d, mark, names))
        for d, (ids, mark) in zip(documents, marked, strict=True)
    ]


def _given(document: IdsDocument) -> Marks:
    mask = document.loss_mask
    mark = np.ones(len(document.ids), np.uint8) if mask is None else np.array(mask, np.uint8)
    return document.ids, mark


def num_processes(num_workers: int) -> int:
    """Return how many processes tokenise: those asked for, or all cores this process may use."""
    return num_workers or len(os.sched_getaffinity(0))


def load_workers() -> None:
    """Begin to load, in a process beside this one, what workers need; they are forked from it, so it is loaded once.

    Where it is called before this process loads the same, the two do it at once. Called again it does nothing.
    """
    forkserver.set_forkserver_preload(list(PRELOADED))
    forkserver.ensure_running()


def encode_parallel(
    batches: Iterable[RowBatch],
    source: SourceConfig,
    adds_eos: bool,
    make_tokenizer: Callable[[], TokenizerLike],
    num_workers: int,
    values: Sequence[TokenValue] = (),
) -> Iterator[EncodedBatch]:
    """Encode batches in `num_workers` processes, in order, a few batches ahead of the reader.

    Raises:
        DataError: If a process dies.
    """
    # Not forked from this process, which has threads (rich, tokenizers, datasets) that a fork would break.
    load_workers()
    with ProcessPoolExecutor(
        num_workers, get_context("forkserver"), _start_worker, (make_tokenizer, source, adds_eos, values)
    ) as pool:
        ahead: deque[Future[EncodedBatch]] = deque()
        try:
            for batch in batches:
                ahead.append(pool.submit(_work, batch))
                if len(ahead) > 2 * num_workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                "`data.num_workers` must leave every process enough memory, but one of "
                f"{num_workers} died instead. Set data.num_workers to a smaller number."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_encode_here: Encode | None = None


def _start_worker(
    make_tokenizer: Callable[[], TokenizerLike],
    source: SourceConfig,
    adds_eos: bool,
    values: Sequence[TokenValue],
) -> None:
    global _encode_here
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = make_tokenizer()
    _encode_here = lambda batch: encode_batch(batch, source, adds_eos, tokenizer, values)  # noqa: E731


def _end_with_parent() -> None:
    """Wait for the end of the process that this one works for, however it ended, and end with it."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(Exit.died)


def _work(batch: RowBatch) -> EncodedBatch:
    assert _encode_here is not None, "the worker was not started"
    return _encode_here(batch)
