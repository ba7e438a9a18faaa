"""The peer of `prepare.py`: the library `datasets` turns a file into packs, by map, as transformers' examples do it.

Texts of several columns are joined by a line break; each document ends with EOS; what is left of a batch when its
tokens are cut into packs is dropped, as there.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any


def main() -> None:
    """Tokenise, pack, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--columns", nargs="+", required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--seq-len", type=int, required=True)
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    from datasets import load_dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    kind = "text" if arguments.file.suffix == ".txt" else "json"
    cache = str(arguments.out / "cache")
    rows = load_dataset(kind, data_files=str(arguments.file), split="train", cache_dir=cache)

    def tokenise(batch: dict[str, list[str]]) -> dict[str, Any]:
        texts = ["\n".join(parts) for parts in zip(*(batch[name] for name in arguments.columns), strict=True)]
        return {"input_ids": [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts)["input_ids"]]}

    def pack(batch: dict[str, list[list[int]]]) -> dict[str, Any]:
        joined = list(itertools.chain.from_iterable(batch["input_ids"]))
        size = arguments.seq_len
        packs = [joined[at : at + size] for at in range(0, len(joined) - size + 1, size)]
        return {"input_ids": packs, "labels": packs}

    options: dict[str, Any] = {"batched": True, "num_proc": arguments.processes}
    tokens = rows.map(tokenise, remove_columns=rows.column_names, **options)
    packed = tokens.map(pack, remove_columns=tokens.column_names, **options)
    packed.save_to_disk(str(arguments.out / "packs"))
    counts = {"num_packs": len(packed), "num_tokens": len(packed) * arguments.seq_len}
    (arguments.out / "counts.json").write_text(json.dumps(counts), encoding="utf-8")


if __name__ == "__main__":
    main()
