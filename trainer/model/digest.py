"""One digest for the weights a model is loaded from, whatever its folder is called.

Small files are read every time. Of a large one the digests of its blocks are kept beside what the file system says of
it, the time of its last change included, which nobody can set; and every time some blocks are read again, other ones
each time, so that bits that rot under the file system are found sooner or later. 140 GB in 30 files cost 1.1 GB of
reading at every start, and all of it when a file was changed, copied or moved.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Callable
from pathlib import Path

from trainer.config.model import ModelConfig, ModelKind
from trainer.config.snapshot import write_atomic
from trainer.config.tune import Quantise
from trainer.errors import ModelError
from trainer.model.tune.quantise import NF4
from trainer.runtime.seal import file_digest, part_digest, read_sealed, sealed_text

_LOG = logging.getLogger(__name__)
CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SMALL_BYTES = 64 << 20
"""Files up to this size are read whole every time."""
BLOCK_BYTES = 4 << 20
NUM_SAMPLED = 8
"""Blocks of a large file that are read again every time, beside the first, which names the tensors."""


def base_digest(
    model: ModelConfig,
    quantise: Quantise,
    source: str,
    cache_dir: str,
    look: Callable[[], None] = lambda: None,
) -> str:
    """Return what names a base: the digest of its files, or the recipe of random weights; and how it is packed.

    Args:
        look: Called between blocks of large files that are read whole; it may raise.
    Raises:
        ModelError: There are no weights to read.
    """
    if model.kind is ModelKind.random:
        return _named([Path(source, CONFIG).read_text(encoding="utf-8"), model.seed])
    digest = model_digest(source, model.revision, Path(cache_dir), look)
    return digest if quantise is Quantise.none else _named([digest, NF4])


def _named(parts: list[str | int]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def model_digest(
    source: str,
    revision: str | None = None,
    cache_dir: Path | None = None,
    look: Callable[[], None] = lambda: None,
) -> str:
    """Return the SHA-256 over config.json and the weight files of a folder or Hugging Face name.

    Weights that are only on the hub are downloaded into its cache, where loading the model finds them.

    Args:
        cache_dir: Where the blocks of large files are noted, so that a second call reads some of them only; None
            reads everything.
        look: See `base_digest`.
    Raises:
        ModelError: There are no weights to read.
    """
    folder = Path(source) if Path(source).is_dir() else _snapshot(source, revision)
    try:
        names = sorted([CONFIG, *_weight_names(folder)])
        lines = [f"{name}:{_file_digest(folder / name, cache_dir, look)}\n" for name in names]
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


def _file_digest(file: Path, cache_dir: Path | None, look: Callable[[], None]) -> str:
    path = file.resolve(strict=True)
    stat = path.stat()
    if cache_dir is None or stat.st_size <= SMALL_BYTES:
        return file_digest(path)
    described = [str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    note = cache_dir / "digests" / hashlib.sha256(json.dumps(described).encode()).hexdigest()[:32]
    try:
        known = read_sealed(note)
        blocks: list[str] = known["blocks"]
        if _still_there(path, blocks):
            return str(known["sha256"])
        _LOG.warning(
            "%s has other bytes than at its last reading, although its times are the same: the disk is faulty, or the "
            "file was changed below the file system. It is read whole again.",
            path,
        )
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError) as error:
        _LOG.warning("The digest kept of %s cannot be used (%s): the file is read whole again.", path, error)
    digest, blocks = _read_whole(path, look)
    _remember(note, digest, blocks)
    return digest


def _read_whole(path: Path, look: Callable[[], None]) -> tuple[str, list[str]]:
    """Return the SHA-256 of a file and the digests of its blocks."""
    digest, blocks = hashlib.sha256(), []
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            look()
            digest.update(block)
            blocks.append(part_digest(block).hex())
    return digest.hexdigest(), blocks


def _still_there(path: Path, blocks: list[str]) -> bool:
    """Read the first block and some others again and tell whether they are as they were."""
    chosen = {0, *random.SystemRandom().sample(range(len(blocks)), min(NUM_SAMPLED, len(blocks)))}
    with path.open("rb") as stream:
        for number in sorted(chosen):
            stream.seek(number * BLOCK_BYTES)
            if part_digest(stream.read(BLOCK_BYTES)).hex() != blocks[number]:
                return False
    return True


def _remember(note: Path, digest: str, blocks: list[str]) -> None:
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(note, sealed_text({"sha256": digest, "blocks": blocks}))
    except OSError as error:  # a cache that cannot be written costs time, not the run
        _LOG.warning(
            "The digest of the weights cannot be kept in %s (%s): it is taken anew each time.",
            note.parent,
            error,
        )


def _unreadable(source: str, error: Exception) -> ModelError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelError(
        f"`model.path` must be a model with weights, but those of {source} cannot be read: {first.rstrip('.')}. "
        "Download the model first, or check the name."
    )
