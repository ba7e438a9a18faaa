"""One digest for the weights a model is loaded from, whatever its folder is called."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

from trainer.errors import ModelError

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def model_digest(source: str, revision: str | None = None, cache_dir: Path | None = None) -> str:
    """Return the SHA-256 over config.json and the weight files of a folder or Hugging Face name.

    Weights that are only on the hub are downloaded into its cache, where loading the model finds them.

    Args:
        cache_dir: Where the digest of each file is kept by path, size and modification time, so that
            a second call does not read every weight again; None reads them.
    Raises:
        ModelError: There are no weights to read.
    """
    folder = Path(source) if Path(source).is_dir() else _snapshot(source, revision)
    try:
        names = sorted([CONFIG, *_weight_names(folder)])
        lines = [f"{name}:{_file_digest(folder / name, cache_dir)}\n" for name in names]
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(source, error) from error
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _weight_names(folder: Path) -> list[str]:
    if (folder / INDEX).exists():
        return sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    if (folder / SINGLE).exists():
        return [SINGLE]
    older = sorted(file.name for file in folder.glob("pytorch_model*.bin"))
    if not older:
        raise FileNotFoundError(f"it holds no {SINGLE}")
    return older


def _snapshot(source: str, revision: str | None) -> Path:
    """Return the folder of a Hugging Face model with its weights in it."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(source, revision=revision, allow_patterns=[CONFIG, INDEX]))
        names = [SINGLE]
        if (folder / INDEX).exists():
            names = _weight_names(folder)
        return Path(snapshot_download(source, revision=revision, allow_patterns=[CONFIG, INDEX, *names]))
    except Exception as error:  # the hub raises its own, requests' and the file system's
        raise _unreadable(source, error) from error


def _file_digest(file: Path, cache_dir: Path | None) -> str:
    path = file.resolve(strict=True)
    stat = path.stat()
    described = json.dumps([str(path), stat.st_size, stat.st_mtime_ns])
    note: Path | None = None
    if cache_dir is not None:
        note = cache_dir / "digests" / hashlib.sha256(described.encode()).hexdigest()[:32]
        with contextlib.suppress(OSError):
            known = note.read_text(encoding="ascii").strip()
            if len(known) == 64:
                return known
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if note is not None:
        _remember(note, digest)
    return digest


def _remember(note: Path, digest: str) -> None:
    staged = note.with_name(f".{note.name}.{os.getpid()}")
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, not the run
        note.parent.mkdir(parents=True, exist_ok=True)
        staged.write_text(digest, encoding="ascii")
        staged.replace(note)


def _unreadable(source: str, error: Exception) -> ModelError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelError(
        f"`model.path` must be a model with weights, but those of {source} cannot be read: {first.rstrip('.')}. "
        "Download the model first, or check the name."
    )
