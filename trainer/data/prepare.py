"""Turns every source into a token store, or finds the one that is already there. CPU only.

Never runs inside a process group; a source is read once, and a failure leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from trainer.config.data import DataConfig, Format, Role, SourceConfig
from trainer.config.many import many
from trainer.data.chat.shape import describe_shape, find_shape, refuse_always_failing
from trainer.data.rows.contaminated import describe_evaluations
from trainer.data.rows.language import require_languages
from trainer.data.rows.minhash import NearDuplicates
from trainer.data.sized_rows import SizedRows, open_rows, taking
from trainer.data.store.given import describe_given
from trainer.data.store.held_back import choose_validation
from trainer.data.store.intake import Intake
from trainer.data.store.labelled import check_labels
from trainer.data.store.look import keep_look, look_at
from trainer.data.store.overlap import check_disjoint
from trainer.data.store.prepared import (
    adds_eos,
    digest_of,
    find_store,
    held_out_frac,
    lock_file,
    pack_options,
    refuse_rows,
    shaped_by,
    source_key,
    stores_folder,
    unit_of,
    write_pointer,
)
from trainer.data.store.spool import Spool
from trainer.data.store.store import Store, check_vocabulary, open_store
from trainer.data.store.summary import print_report
from trainer.data.store.writer import cache_explained, is_whole, write_store
from trainer.data.tokens.tokenise import PARALLEL_BYTES, encode_batch, encode_parallel, num_processes
from trainer.data.types import EncodedBatch, TokenizerLike, Unit
from trainer.errors import DataError
from trainer.runtime.lock import one_at_a_time
from trainer.runtime.publish import clear_leftovers, put_in_place, staged
from trainer.runtime.say import say

MakeTokenizer = Callable[[], TokenizerLike]


def prepare(
    data: DataConfig,
    tokenizer: TokenizerLike,
    make_tokenizer: MakeTokenizer,
    vocab_size: int | None,
    console: Console,
) -> dict[str, Store]:
    """Find or build the store of every source and print the report.

    `make_tokenizer` makes the same tokenizer again in a worker process and must be picklable;
    `vocab_size` is the number of rows of the model's embedding, None leaves ids unchecked.

    Raises:
        DataError: If a source cannot be used as configured.
    """
    for name, source in data.sources.items():
        _check_tokenizer(name, source, data, tokenizer)
        refuse_rows(name, source, data)
        require_languages(name, source.curate.languages)
    stores: dict[str, Store] = {}
    for name, source in data.sources.items():
        store = _find(name, source, data, tokenizer, console)
        if store is None:
            # Jobs that start together, such as the points of a sweep, miss the same stores.
            lock, waits = lock_file(name, source, data, tokenizer), partial(_say_waiting, name, console)
            with cache_explained(data.cache_dir), one_at_a_time(lock, waits):
                store = _find(name, source, data, tokenizer, console)
                if store is None:
                    store = _build(name, source, data, tokenizer, make_tokenizer, vocab_size, console)
        else:
            say(console, f"{name}: unchanged, using the store {store.digest[:12]}")
        if vocab_size is not None:
            check_vocabulary(name, store, vocab_size)
        stores[name] = store
    check_disjoint(stores)
    check_labels({name: store for name, store in stores.items() if data.sources[name].role is Role.target})
    _say_shape(data, tokenizer, console)
    print_report(stores, _notes(data, stores), tokenizer, console)
    return stores


def _notes(data: DataConfig, stores: dict[str, Store]) -> dict[str, list[str]]:
    """Return what a person should know of each source: which files were taken, and what was met in them."""
    return {
        name: [*look_at(name, source, data).lines, *stores[name].meta["notes"]]
        for name, source in data.sources.items()
    }


def _say_shape(data: DataConfig, tokenizer: TokenizerLike, console: Console) -> None:
    """Say once what the chat template has no place for, beside what was met in the rows.

    A row that is refused because of it says so itself; before another error it would be noise.
    """
    if any(source.holds_chats for source in data.sources.values()):
        for line in describe_shape(find_shape(tokenizer)):
            say(console, line)
        end, eos = tokenizer.turn_end, tokenizer.eos_id
        if end is not None and (eos is None or tokenizer.decode([eos]) != end):
            say(
                console,
                f"Answers end with {end}, which is not the tokenizer's EOS: `palimpsest export` adds it to "
                "generation_config.json of a whole model, and says what to give where an adapter is used.",
            )


def _say_waiting(name: str, console: Console, holder: str) -> None:
    say(console, f"{name}: being prepared by {holder}; waiting for it.")


def _check_tokenizer(name: str, source: SourceConfig, data: DataConfig, tokenizer: TokenizerLike) -> None:
    if source.holds_chats and not tokenizer.has_chat_template:
        raise DataError(
            f"`model.chat_template` must name a Jinja file for `data.sources.{name}`, which holds "
            "chats, but is not set, and the tokenizer brings no chat template. Set it, or use the "
            "instruct model's tokenizer as model.tokenizer."
        )
    if source.holds_chats:
        refuse_always_failing(name, tokenizer)
    if adds_eos(source, data) and tokenizer.eos_id is None:
        raise DataError(
            "`data.add_eos` must be false for a tokenizer without an EOS token, but is true instead. "
            "Set data.add_eos=false or use a tokenizer with EOS."
        )


def _find(
    name: str, source: SourceConfig, data: DataConfig, tokenizer: TokenizerLike, console: Console
) -> Store | None:
    path = find_store(name, source, data, tokenizer)
    return None if path is None else _open_if_whole(path, unit_of(source), console)


def _open_if_whole(path: Path, unit: Unit, console: Console) -> Store | None:
    """Open a store; None where there is none, and where there is a damaged one, which is said."""
    if not path.is_dir():
        return None
    try:
        return open_store(path, unit)
    except DataError as error:
        say(console, f"{error} It is made again.")
        return None


def _build(
    name: str,
    source: SourceConfig,
    data: DataConfig,
    tokenizer: TokenizerLike,
    make_tokenizer: MakeTokenizer,
    vocab_size: int | None,
    console: Console,
) -> Store:
    key, unit = source_key(name, source, data), unit_of(source)
    clear_leftovers(stores_folder(data))
    rows = open_rows(name, source, data)

    def describe() -> dict[str, Any]:
        return shaped_by(rows.read_origin, source, data, tokenizer)

    def fill(folder: Path) -> str:
        encoded = _encode(rows, data, tokenizer, make_tokenizer)
        spool = Spool(folder, [value.value for value in data.values])
        try:
            intake = Intake(name, spool, pack_options(source, data), source.clean.deduplicate, vocab_size)
            if source.curate.near_duplicates is not None:
                intake.near = NearDuplicates(source.curate.near_duplicates)
            _take_all(intake, encoded, rows, console)
            intake.check()
            notes = [
                *rows.rows.reading.to_lines(),
                *_curated(intake, source),
                *([rows.fetched] if rows.remote else ()),
            ]
            if source.format is Format.ids:
                notes += describe_given(source, intake.counts, tokenizer)
            digest = _write(folder, intake, notes, held_out_frac(source, data), describe())
        finally:
            spool.delete()
        _check_unchanged(name, source, data, key)
        return digest

    # What is behind an address is read once, so only then its content has a name.
    digest = key if rows.origin is None else digest_of(describe())
    if rows.origin is None or _open_if_whole(stores_folder(data) / digest, unit, console) is None:
        with staged(stores_folder(data) / digest) as folder:
            digest = fill(folder)
            put_in_place(folder, stores_folder(data) / digest, partial(is_whole, unit=unit))
    write_pointer(name, key, data, tokenizer, digest)
    if rows.listing is not None:
        keep_look(source, rows.listing, data)
    return open_store(stores_folder(data) / digest, unit)


def _curated(intake: Intake, source: SourceConfig) -> list[str]:
    """Return lines about rows that were left out by what they hold, and about what they were compared with."""
    return [*describe_evaluations(source.curate.against, source.curate.ngram), *intake.dropped_lines()]


def _encode(
    rows: SizedRows, data: DataConfig, tokenizer: TokenizerLike, make_tokenizer: MakeTokenizer
) -> Iterator[EncodedBatch]:
    source, batches = rows.rows.source, rows.rows.batches()
    eos = adds_eos(source, data)
    processes = num_processes(data.num_workers)
    if processes > 1 and rows.num_bytes >= PARALLEL_BYTES:
        return encode_parallel(batches, source, eos, make_tokenizer, processes, data.values)
    return (encode_batch(batch, source, eos, tokenizer, data.values) for batch in batches)


def _take_all(intake: Intake, encoded: Iterable[EncodedBatch], rows: SizedRows, console: Console) -> None:
    with taking(intake, rows, console) as show:
        for batch in encoded:
            intake.take(batch)
            show()


def _write(folder: Path, intake: Intake, notes: list[str], frac: float, described: dict[str, Any]) -> str:
    """Write the store into a folder, and return its digest."""
    digest = digest_of(described)
    hashes = intake.spool.hashes
    held_out = choose_validation(hashes, frac)
    meta = {
        "digest": digest,
        "descriptor": _plain(described),
        "counts": dict(intake.counts),
        "notes": notes,
        "longest": intake.longest,
        **intake.places_shown(held_out),
        "split_note": _describe_split(len(hashes), int(held_out.sum()), frac),
    }
    write_store(folder, intake.spool, held_out, intake.options, meta)
    return digest


def _describe_split(num_documents: int, num_held_out: int, frac: float) -> str:
    if frac > 0 and num_held_out == 0:
        return f"nothing held out: {many(num_documents, 'document')} {'is' if num_documents == 1 else 'are'} too few"
    if frac > 0 and num_held_out == 1 and num_documents * frac < 1:
        return f"1 of {num_documents} documents held out, since data.validation_frac={frac:g} of them is less than one"
    return ""


def _check_unchanged(name: str, source: SourceConfig, data: DataConfig, key: str) -> None:
    if source_key(name, source, data) != key:
        raise DataError(
            f"The files of `data.sources.{name}` must not change while they are read, but did. Run "
            "`palimpsest prepare` again."
        )


def _plain(described: Any) -> Any:
    # Enums to their values, as they are hashed.
    if isinstance(described, dict):
        return {key: _plain(value) for key, value in described.items()}
    if isinstance(described, list):
        return [_plain(value) for value in described]
    return getattr(described, "value", described)
