"""Arrays of token stores are what they were, to the last byte: the same tokens, packs and digests, so the same runs.

`python -m tests.unit.data.test_golden_stores` writes the digests anew where they are meant to change, and the commit
says why.
"""

from __future__ import annotations

import io
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.helpers.tokenizers import make_tokenizer
from trainer.config.data import ColumnsConfig, DataConfig, Format, LongDocuments, Packing, SourceConfig
from trainer.data.prepare import prepare

FILE = Path(__file__).resolve().parents[2] / "golden" / "stores.json"
BEST_FIT = {"packing": Packing.best_fit, "long_documents": LongDocuments.split}
SOURCES: dict[str, dict[str, Any]] = {
    "text_concat": {"format": Format.text},
    "text_best_fit_split": {"format": Format.text, **BEST_FIT},
    "completion": {"format": Format.completion, **BEST_FIT},
    "completion_as_chat": {"format": Format.completion, "as_chat": True, **BEST_FIT},
    "chat": {"format": Format.chat, **BEST_FIT},
    "ids": {"format": Format.ids, "columns": ColumnsConfig(loss_mask="mask"), **BEST_FIT},
}


def row_of(kind: Format, chance: random.Random) -> dict[str, Any]:
    """Return a made-up row."""

    def words() -> str:
        return " ".join(
            chance.choice(["one", "two", "three", "\u00e9t\u00e9"]) for _ in range(chance.randint(1, 30))
        )

    if kind is Format.text:
        return {"text": words()}
    if kind is Format.completion:
        return {"prompt": words(), "completion": words()}
    if kind is Format.ids:
        ids = [chance.randrange(260) for _ in range(chance.randint(1, 150))]
        return {"input_ids": ids, "mask": [chance.randrange(2) for _ in ids]}
    turns = []
    for _ in range(chance.randint(1, 3)):
        answer: dict[str, Any] = {"role": "assistant", "content": words()}
        if chance.random() < 0.3:
            answer["weight"] = chance.randrange(2)
        turns += [{"role": "user", "content": words()}, answer]
    return {"messages": turns}


def digests_of(name: str, folder: Path) -> dict[str, str]:
    """Prepare a source and return the SHA-256 of every array of its store."""
    options, chance = SOURCES[name], random.Random(name)
    rows = [row_of(options["format"], chance) for _ in range(200)]
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceConfig(path=str(file), **options)
    data = DataConfig(
        sources={"s": source},
        seq_len=128,
        validation_frac=0.1,
        num_workers=1,
        cache_dir=str(folder / "cache"),
    )
    tokenizer = make_tokenizer(adds_bos=True)
    store = prepare(data, tokenizer, lambda: tokenizer, None, Console(file=io.StringIO()))["s"]
    return {array: known["sha256"] for array, known in sorted(store.meta["arrays"].items())}


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_every_array_of_a_store_is_what_it_was(name: str, tmp_path: Path) -> None:
    assert digests_of(name, tmp_path) == json.loads(FILE.read_text())[name]


def write_golden() -> None:
    """Write the digests of all sources."""
    with tempfile.TemporaryDirectory() as folder:
        found = {name: digests_of(name, Path(folder)) for name in sorted(SOURCES)}
    FILE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    write_golden()
