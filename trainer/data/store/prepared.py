"""Finds the store of a source without reading the source: what `prepare` noted is looked up by key.

A key is a digest of the source's options, the tokenizer, and the names, sizes and times of its files (of those behind
an address: what their store tells of them), so that training hashes no content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any, assert_never

from trainer.config.data import (
    ANSWERED,
    DataConfig,
    Format,
    LongDocuments,
    Packing,
    PackingMode,
    Role,
    SourceConfig,
)
from trainer.config.learn import ToolCalls
from trainer.config.may_differ import OF_REVIEW
from trainer.config.paths import is_address
from trainer.data.rows.contaminated import evaluation_digest
from trainer.data.rows.files import hash_files, list_files
from trainer.data.store.look import look_at
from trainer.data.store.note import read_note, write_note
from trainer.data.store.store import FORMAT_VERSION, Store, open_store, origin_digest
from trainer.data.store.writer import PackOptions
from trainer.data.types import TokenizerLike, Unit
from trainer.errors import DataError

RENDERING_VERSION = 4
"""Raise it when the same rows and options give other tokens or other marks: a new number makes new stores."""


PREFERENCE_COLUMNS = ("chosen", "rejected", "completions", "label", "margin")
"""Columns that shape stores of preferences alone."""


def cache_folder(data: DataConfig) -> Path:
    """Return the folder of `data.cache_dir`."""
    return Path(data.cache_dir)


def stores_folder(data: DataConfig) -> Path:
    """Return the folder that holds the stores by digest."""
    return cache_folder(data) / "stores"


def effective_packing(source: SourceConfig) -> Packing:
    """Return the packing of a source, chosen by its format where the configuration leaves it open."""
    if source.packing is not None:
        return source.packing
    return Packing.concat if source.format in (Format.text, Format.ids) else Packing.best_fit


def in_rows(data: DataConfig) -> bool:
    """Tell whether every document is to be a row of its own; `auto` is settled before (run/packing.py)."""
    return data.packing is PackingMode.none


def refuse_rows(name: str, source: SourceConfig, data: DataConfig) -> None:
    """Refuse pairs where every document is to be a row of its own.

    Raises:
        DataError: If they are there.
    """
    if in_rows(data) and source.holds_preferences:
        raise DataError(
            f"`data.packing` must be packed for `data.sources.{name}`, whose answers lie side by side in a row, but is "
            "none instead. Set data.packing=packed, or take another model where it says that it cannot."
        )


def shares_prompts(source: SourceConfig, data: DataConfig) -> bool:
    """Tell whether packs hold the prompt of a pair once; what is left open is settled before (run/sharing.py)."""
    return source.format is Format.preference and data.share_prompts is True


def effective_long(source: SourceConfig, data: DataConfig) -> LongDocuments:
    """Return what happens to documents longer than a sequence, chosen by the format where that is left open."""
    if source.long_documents is not None:
        return source.long_documents
    if source.holds_preferences:
        return LongDocuments.drop
    is_stream = source.format in (Format.text, Format.ids)
    return LongDocuments.split if in_rows(data) and is_stream else LongDocuments.error


def pack_options(source: SourceConfig, data: DataConfig) -> PackOptions:
    """Return how the units of a source become packs."""
    return PackOptions(
        data.seq_len,
        effective_packing(source),
        effective_long(source, data),
        unit_of(source),
        in_rows(data),
        shares_prompts(source, data),
    )


def adds_eos(source: SourceConfig, data: DataConfig) -> bool:
    """Say whether documents of a source end with an EOS that the data room adds."""
    plain = source.format in ANSWERED and not source.as_chat
    return data.add_eos and (source.format is Format.text or plain)


def unit_of(source: SourceConfig) -> Unit:
    """Return what the packs of a source keep whole."""
    match source.format:
        case Format.text | Format.completion | Format.chat | Format.ids:
            return Unit.document
        case Format.preference:
            return Unit.pair
        case Format.unpaired:
            return Unit.answer
        case _:
            assert_never(source.format)


def held_out_frac(source: SourceConfig, data: DataConfig) -> float:
    """Return the share of a source's documents that is held out: all of a probe."""
    return 1.0 if source.role is Role.probe else data.validation_frac


def shaping_options(source: SourceConfig, data: DataConfig) -> dict[str, Any]:
    """Describe every option that shapes a store, apart from its origin and the tokenizer."""
    packing = effective_packing(source)
    fields = asdict(source)
    for key in ("path", "dataset", "subset", "split", "revision", "role", "weight", "max_epochs", *OF_REVIEW):
        del fields[key]  # where it comes from, how much of it is drawn, and who let it pass
    if source.tokenizer is None:
        del fields["tokenizer"]
    if source.learn.tool_calls is ToolCalls.error:
        del fields["learn"]["tool_calls"]
    if not source.curate.is_on:
        del fields["curate"]
    else:
        fields["curate"]["against"] = [evaluation_digest(file) for file in source.curate.against]
    if not source.holds_preferences:
        for key in PREFERENCE_COLUMNS:
            del fields["columns"][key]
    elif source.columns.margin is None:  # as stores were named before there were margins
        del fields["columns"]["margin"]
    fields["packing"] = PackingMode.none if in_rows(data) else packing
    fields["long_documents"] = effective_long(source, data)
    if packing is Packing.concat and not in_rows(data):
        fields["long_documents"] = LongDocuments.split
    return {
        "version": FORMAT_VERSION,
        "rendering": RENDERING_VERSION,
        "unit": unit_of(source).value,
        **fields,
        **({"values": data.values} if data.values else {}),
        **({"share_prompts": True} if shares_prompts(source, data) else {}),
        "seq_len": data.seq_len,
        "validation_frac": held_out_frac(source, data),
        "adds_eos": adds_eos(source, data),
    }


def digest_of(described: Any) -> str:
    """Hash a description of plain values and enums; the order of keys does not matter."""
    text = json.dumps(described, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    assert isinstance(value, Enum), f"cannot describe {value!r}"
    return value.value


def source_key(name: str, source: SourceConfig, data: DataConfig) -> str:
    """Name a source as it stands on disk or on the hub, with its options and without a tokenizer."""
    return digest_of([look_at(name, source, data).origin, shaping_options(source, data)])


def pointer_file(key: str, data: DataConfig, tokenizer: TokenizerLike) -> Path:
    """Return where `prepare` notes the store of a source key and a tokenizer."""
    return cache_folder(data) / "prepared" / f"{digest_of([key, tokenizer.digest])}.json"


def lock_file(name: str, source: SourceConfig, data: DataConfig, tokenizer: TokenizerLike) -> Path:
    """Return the file that a process holds while it prepares a source."""
    note = pointer_file(source_key(name, source, data), data, tokenizer)
    return cache_folder(data) / "locks" / note.stem


def write_pointer(name: str, key: str, data: DataConfig, tokenizer: TokenizerLike, digest: str) -> None:
    """Note which store a source was prepared as; the note is replaced at once or not at all."""
    note = {"source": name, "source_key": key, "tokenizer": tokenizer.digest, "store": digest}
    write_note(pointer_file(key, data, tokenizer), note)


def find_store(name: str, source: SourceConfig, data: DataConfig, tokenizer: TokenizerLike) -> Path | None:
    """Return the folder of the store that a source was prepared as, or None."""
    note = read_note(pointer_file(source_key(name, source, data), data, tokenizer))
    store = stores_folder(data) / str(note.get("store", "none"))
    return store if store.is_dir() else None


def origin_now(name: str, source: SourceConfig, data: DataConfig, tokenizer: TokenizerLike) -> str | None:
    """Return what names the content of a source as it stands, prepared or not; None where only fetching it would tell.

    Files that have other names or times than when they were prepared are read to the end.

    Raises:
        DataError: They are not there.
    """
    place = find_store(name, source, data, tokenizer)
    if place is not None:
        with suppress(DataError):  # a damaged store tells nothing of its source
            return str(open_store(place).described["origin"])
    if source.path is None or is_address(source.path):
        return None
    return origin_digest(hash_files(list_files(name, source)))


def find_prepared(name: str, source: SourceConfig, data: DataConfig, tokenizer: TokenizerLike) -> Path:
    """Return the folder of the store that `palimpsest prepare` made of a source.

    Files that have other names or times than when they were prepared are read to the end: what they hold decides.

    Raises:
        DataError: If it made none with these options, or only with another tokenizer.
    """
    place = find_store(name, source, data, tokenizer)
    if place is not None:
        return place
    described = _shaped_by_content(name, source, data, tokenizer)
    if described is not None:
        place = stores_folder(data) / digest_of(described)
        if place.is_dir():
            return place
    fix = "Run `palimpsest prepare` with the same overrides."
    if _is_prepared_otherwise(source_key(name, source, data), described, data):
        raise DataError(
            f"`data.sources.{name}` must be prepared with the tokenizer of this run, but the store in "
            f"'{data.cache_dir}' was made by another tokenizer (or chat template). {fix}"
        )
    raise DataError(
        f"`data.sources.{name}` must be prepared before training, but '{data.cache_dir}' has no token "
        f"store for it with these options and files. {fix}"
    )


def _shaped_by_content(
    name: str, source: SourceConfig, data: DataConfig, tokenizer: TokenizerLike
) -> dict[str, Any] | None:
    """Return what shapes a store of files with this content; None where it would be fetched."""
    if source.path is None or is_address(source.path):
        return None
    return shaped_by(hash_files(list_files(name, source)), source, data, tokenizer)


def shaped_by(
    origin: Any, source: SourceConfig, data: DataConfig, tokenizer: TokenizerLike
) -> dict[str, Any]:
    """Return all that shapes a store, whose digest is its name."""
    return {"origin": origin, "options": shaping_options(source, data), "tokenizer": tokenizer.digest}


def find_all(data: DataConfig, tokenizer: TokenizerLike) -> dict[str, Path]:
    """Return the folders of the stores of all sources, by name."""
    return {name: find_prepared(name, source, data, tokenizer) for name, source in data.sources.items()}


def open_all(data: DataConfig, tokenizer: TokenizerLike) -> dict[str, Store]:
    """Open the stores of all sources, by name."""
    return open_each(data, find_all(data, tokenizer))


def open_each(data: DataConfig, places: Mapping[str, Path]) -> dict[str, Store]:
    """Open the stores of all sources where they are, by name.

    Raises:
        DataError: If one is damaged, or keeps other units whole than its source's.
    """
    return {name: open_store(place, unit_of(data.sources[name])) for name, place in places.items()}


def _is_prepared_otherwise(key: str, described: dict[str, Any] | None, data: DataConfig) -> bool:
    """Tell whether a source was prepared with another tokenizer: these files by their times, or by their content."""
    notes = [read_note(path) for path in (cache_folder(data) / "prepared").glob("*.json")]
    if any(note.get("source_key") == key for note in notes):
        return True
    return described is not None and any(
        note.get("store") == digest_of({**described, "tokenizer": note.get("tokenizer")}) for note in notes
    )
