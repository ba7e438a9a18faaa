"""What a folder must hold to be the base of a run, looked at without loading anything."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
INDEX = ".index.json"
"""What is behind the name of weights in the name of the file that lists their shards."""
ASKED = "model.safetensors, its shards with model.safetensors.index.json, or pytorch_model.bin"
POINTER = b"version https://git-lfs"
"""How the file begins that git leaves in the place of a large one that it did not fetch."""
FETCH = "Fetch it with git lfs pull, or get the model again."
MOST_HEADER_BYTES = 100_000_000
"""Of a safetensors file, as its library has it."""
SETTINGS = "tokenizer_config.json"
_WITHOUT_FILES = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")
"""Classes of tokenizers that have no words to read, only bytes or characters."""
_TOKENIZER = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "spiece.model",
    "sentencepiece*",
    "*.tiktoken",
    "tekken.json",
)


@dataclass(frozen=True, slots=True)
class Needs:
    """What a command reads of a model beside its config.json."""

    tokenizer: bool = True
    weights: bool = True


@dataclass(frozen=True, slots=True)
class Lack:
    """Why a folder is no base: what it is or has instead, and the fix."""

    state: str
    fix: str


def folder_lacks(path: Path, needs: Needs) -> Iterator[Lack]:
    """Yield what a place that is there lacks of a model; where it is none at all, that alone."""
    try:
        yield from _lacks(path, needs)
    except OSError as error:
        yield Lack(f"cannot be read ({error.strerror}: {error.filename})", "Mend its rights, or give a copy.")


def _lacks(path: Path, needs: Needs) -> Iterator[Lack]:
    if path.is_file():
        is_inside = (path.parent / CONFIG).is_file()
        yield Lack(
            "is a file", f"Set model.path={path.parent}." if is_inside else "Give the folder of a model."
        )
        return
    if not (path / CONFIG).is_file():
        yield _no_config(path)
        return
    yield from _config_lacks(path / CONFIG)
    if needs.weights:
        yield from _weight_lacks(path)
    if needs.tokenizer:
        yield from tokenizer_lacks(path)


def tokenizer_lacks(path: Path) -> Iterator[Lack]:
    """Yield what a folder lacks of a tokenizer."""
    found = sorted({file for pattern in _TOKENIZER for file in path.glob(pattern) if file.is_file()})
    settings = _read(path / SETTINGS)
    needs_no_file = "auto_map" in settings or settings.get("tokenizer_class") in _WITHOUT_FILES
    if not needs_no_file and all(file.name == SETTINGS for file in found):
        yield Lack(
            "has no tokenizer (tokenizer.json, tokenizer.model)",
            "Copy the tokenizer's files into it, or set model.tokenizer=FOLDER.",
        )
    for file in found:
        if _is_pointer(file):
            yield Lack(f"has {file.name} only as a pointer of git lfs", FETCH)


def _no_config(path: Path) -> Lack:
    """Return what a folder without a config.json is instead."""
    if (path / ADAPTER).is_file():
        base = _read(path / ADAPTER).get("base_model_name_or_path") or "BASE"
        return Lack(
            f"is an adapter of {base}, and no model alone",
            f"Set model.path={base}, and tune=lora tune.start={path} to go on with it; or write both as one, such as "
            "with palimpsest export ... export.merge=true, and give that folder.",
        )
    inside = sorted(
        file.parent for file in chain(path.glob(f"*/{CONFIG}"), path.glob(f"snapshots/*/{CONFIG}"))
    )
    if len(inside) == 1:
        return Lack(f"has no {CONFIG}, which is in a folder of it", f"Set model.path={inside[0]}.")
    if inside:
        shown = _listed([one.name for one in inside])
        return Lack("holds several models", f"Give one of them: model.path={path}/NAME ({shown}).")
    if (path / "checkpoints").is_dir():
        fix = (
            f"Write it as a model: palimpsest export run_dir={path} (of an adapter with export.merge=true, or set "
            f"model.path to its base and tune.start={path}, which goes on with it)."
        )
        return Lack("is the directory of a run", fix)
    gguf = next(path.glob("*.gguf"), None)
    if gguf is not None:
        return Lack(
            f"has no {CONFIG}, but {gguf.name}", "A GGUF file answers only: get the model as safetensors."
        )
    has = f"has no {CONFIG}" if any(path.iterdir()) else "is empty"
    return Lack(has, "Get the model again, or give the folder that it is in.")


def _config_lacks(file: Path) -> Iterator[Lack]:
    """Yield that a config.json is none of a model."""
    if _is_pointer(file):
        yield Lack(f"has {file.name} only as a pointer of git lfs", FETCH)
        return
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        yield Lack(f"has a {file.name} that is no JSON ({error})", "Get that file again.")
        return
    if not isinstance(found, dict) or not isinstance(found.get("model_type"), str):
        yield Lack(f"has a {file.name} that names no model_type", "Get the config.json of the model.")


def _weight_lacks(path: Path) -> Iterator[Lack]:
    """Yield what is wrong with a folder's weights: none, shards that are not there, files that are cut short."""
    names: list[str] = []
    for name in WEIGHTS:
        index = path / f"{name}{INDEX}"
        if index.is_file():
            listed = _read(index).get("weight_map")
            if not isinstance(listed, dict) or not listed:
                yield Lack(f"has an {index.name} that lists no weights", "Get that file again.")
                return
            names = sorted(set(map(str, listed.values())))
            gone = [one for one in names if not (path / one).is_file()]
            if gone:
                state = (
                    f"has {len(names) - len(gone)} of the {len(names)} files of weights that {index.name} lists "
                    f"({_listed(gone)} {'is' if len(gone) == 1 else 'are'} not there)"
                )
                yield Lack(state, "Get the others as well.")
            break
        if (path / name).is_file():
            names = [name]
            break
    else:
        yield _no_weights(path)
        return
    for file in (path / one for one in names if (path / one).is_file()):
        yield from _file_lacks(file)


def _no_weights(path: Path) -> Lack:
    """Return that a folder has no weights, and what there is in their place."""
    shards = sorted(file.name for file in path.glob("*-of-*.safetensors"))
    if shards:
        return Lack(
            f"has shards of weights ({_listed(shards)}), but no {WEIGHTS[0]}{INDEX}", "Get that file as well."
        )
    others = sorted(
        file.name for end in ("safetensors", "bin", "pt", "pth", "gguf") for file in path.glob(f"*.{end}")
    )
    beside = f", only {_listed(others)}" if others else ""
    return Lack(f"has no weights ({ASKED}){beside}", "Get the model's weights too.")


def _file_lacks(file: Path) -> Iterator[Lack]:
    """Yield that a file of weights is none, or ends before its last tensor."""
    if _is_pointer(file):
        yield Lack(f"has {file.name} only as a pointer of git lfs", FETCH)
        return
    size = file.stat().st_size
    meant = _meant_size(file, size) if file.suffix == ".safetensors" else None
    if meant is not None and meant != size:
        broken = "with another beginning than a safetensors file has"
        shown = broken if meant < 0 else f"of {size:,} bytes for {meant:,}"
        yield Lack(f"has {file.name} {shown}", "Get that file again.")


def _meant_size(file: Path, size: int) -> int:
    """Return the bytes that a safetensors file should have by its own header; -1 where that is none."""
    with file.open("rb") as stream:
        first = stream.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else MOST_HEADER_BYTES
        if length >= MOST_HEADER_BYTES:
            return -1
        if 8 + length > size:
            return 8 + length
        try:
            header = json.loads(stream.read(length))
            ends = [one["data_offsets"][1] for name, one in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, AttributeError, IndexError):
            return -1
    return 8 + length + max(ends, default=0)


def _is_pointer(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(POINTER)) == POINTER


def _read(file: Path) -> dict[str, Any]:
    """Return the JSON object of a file; an empty one where it is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _listed(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"
