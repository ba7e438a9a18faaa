"""Tokens of pairs that were prepared with shared prompts, looked up without a tokenizer: a forecast reads them."""

from __future__ import annotations

from trainer.config.data import DataConfig, SourceConfig
from trainer.data.store.note import read_note
from trainer.data.store.prepared import cache_folder, source_key, stores_folder
from trainer.data.store.store import META, TRAIN, VALIDATION
from trainer.errors import DataError
from trainer.runtime.seal import read_sealed


def shared_counts(name: str, source: SourceConfig, data: DataConfig) -> tuple[int, int, int] | None:
    """Return the pairs of a source, their tokens in packs, and the tokens of prompts that are not there twice.

    None where the source was not prepared with these options and shared prompts, or by several tokenizers.
    """
    try:
        key = source_key(name, source, data)
    except DataError:
        return None
    notes = map(read_note, (cache_folder(data) / "prepared").glob("*.json"))
    digests = {str(note["store"]) for note in notes if note.get("source_key") == key}
    if len(digests) != 1:
        return None
    try:
        splits = read_sealed(stores_folder(data) / digests.pop() / META)["splits"]
        columns = ("num_documents", "num_tokens", "num_shared")
        pairs, tokens, shared = (
            sum(int(splits[split][one]) for split in (TRAIN, VALIDATION)) for one in columns
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (pairs, tokens, shared) if tokens else None
