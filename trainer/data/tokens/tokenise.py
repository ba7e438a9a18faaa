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
from itertools import chain
from multiprocessing import get_context, parent_process
from typing import assert_never

import numpy as np

from trainer.config.data import CleanConfig, SourceConfig, TokenValue
from trainer.data.chat.calls import check_calls
from trainer.data.chat.mark import Marked, mark_chat, mark_completion
from trainer.data.chat.settle import settle_chat
from trainer.data.chat.traits import traits_of
from trainer.data.rows.clean import clean_document, content_digest
from trainer.data.rows.document import parse_row
from trainer.data.rows.weight import WEIGHT
from trainer.data.tokens.encoded import Encoded, Marks, encode_marked, ended
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
)
from trainer.errors import DataError, Exit

Encode = Callable[[RowBatch], EncodedBatch]


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
    counts: Counter[str] = Counter(rows=len(batch.rows))
    problems: list[RowProblem] = []
    dropped: list[Dropped] = []
    documents: list[Document] = []
    places: list[str] = []
    pending: list[Marked] = []
    for index, row in enumerate(batch.rows):
        try:
            document = _read(row, source, counts, values)
            if document is None:
                continue
            if not isinstance(document, IdsDocument | TextDocument):
                marked = _mark(document, tokenizer, source, counts)
                if marked is None:
                    continue
                pending.append(marked)
        except RowError as error:
            problems.append(RowProblem(error.rule, error.value, error.fix, batch.where(index)))
            continue
        except RowDropped as row_dropped:
            counts[row_dropped.cause] += 1
            dropped.append(Dropped(row_dropped.cause, row_dropped.shown, batch.where(index)))
            continue
        documents.append(document)
        places.append(batch.where(index))
    names = [value.value for value in values]
    encoded = _encode(documents, pending, adds_eos, tokenizer, counts, names)
    kept = [i for i, found in enumerate(encoded) if found.ids]
    counts["empty"] += len(encoded) - len(kept) - counts["quoted_dropped"]
    lengths = np.array([len(encoded[i].ids) for i in kept], dtype=np.int32)
    return EncodedBatch(
        tokens=np.fromiter(chain.from_iterable(encoded[i].ids for i in kept), np.uint32, int(lengths.sum())),
        supervised=np.concatenate([np.empty(0, np.uint8), *(encoded[i].mark for i in kept)]),
        lengths=lengths,
        unit_pieces=np.ones(len(kept), dtype=np.int32),
        digests=[content_digest(documents[i]) for i in kept],
        places=[places[i] for i in kept],
        values={
            name: np.concatenate([np.empty(0, np.float32), *(encoded[i].values[name] for i in kept)])
            for name in names
        },
        traits=[traits_of(documents[i], source.learn) for i in kept],
        counts=counts,
        problems=problems,
        dropped=dropped,
    )


def _read(
    row: dict[str, object], source: SourceConfig, counts: Counter[str], values: Sequence[TokenValue]
) -> Document | None:
    document: Document | None = parse_row(row, source, counts, values)
    if isinstance(document, ChatDocument):
        document = settle_chat(document, counts)
        if document is not None:
            check_calls(document, source.learn.tool_calls, counts)
    if document is not None and document.values.get(WEIGHT) == 0:
        counts["zero_weight"] += 1
        return None
    clean: CleanConfig = source.clean
    return None if document is None else clean_document(document, clean, counts)


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
        whole = [(ids, np.ones(len(ids), np.uint8)) for ids in tokenizer.encode_documents(texts)]
        marked = [ended(ids, mark, adds_eos, tokenizer) for ids, mark in whole]
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
    # Spawned, not forked: the parent has threads (rich, tokenizers, datasets) that a fork would break.
    with ProcessPoolExecutor(
        num_workers, get_context("spawn"), _start_worker, (make_tokenizer, source, adds_eos, values)
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
