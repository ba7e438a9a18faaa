"""What the base model said before training: kept in one file that names the model and the data it belongs to."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.config.snapshot import write_atomic
from trainer.data.store.prepared import digest_of
from trainer.errors import DataError
from trainer.evaluate.held_out import PieceLosses, TokenLosses
from trainer.evaluate.kl import Reference, References
from trainer.metrics.device import describe_device
from trainer.runtime.seal import with_digest, without_digest

LAYOUT = 2
"""Of the file, and part of its key: what an evaluation holds by now is not missed in one that was kept before."""


@dataclass(frozen=True, slots=True)
class BaseIdentity:
    """What names the base model, and the arithmetic that it is evaluated with."""

    name: str
    digest: str
    dtype: str
    quantise: str
    """`none`, or the type its frozen weights are kept in."""
    attention: str
    kernels: str

    def shared_key(self, key: str, *more: object) -> str:
        """Return the key under which runs share what they measured of the base.

        A run may go on with other GPUs; another run takes over only what its own kind of device and kernels made.
        """
        device = describe_device().split(",")[0]
        return digest_of([key, device, self.attention, self.kernels, *more])

    @property
    def said_dtype(self) -> str:
        """Return the type in words."""
        return self.dtype + ("" if self.quantise == "none" else f", base in {self.quantise}")


@dataclass(frozen=True, slots=True)
class BaseEvaluation:
    """Held-out losses by piece and the most likely next tokens of the base model."""

    key: str
    """Digest of the base model, the held-out data and how they were evaluated."""
    pieces: dict[str, PieceLosses]
    references: References
    tokens: TokenLosses
    """Loss by position of held-out packs."""


class DamagedBase(DataError):
    """A kept evaluation of the base model that is not as it was written."""


def write_base(path: Path, base: BaseEvaluation) -> None:
    """Write whole or not at all."""
    arrays: dict[str, Any] = {"key": np.array(base.key), "sets": np.array(json.dumps(list(base.pieces)))}
    for name, losses in base.pieces.items():
        arrays[f"nll|{name}"], arrays[f"targets|{name}"] = losses.nll_P, losses.targets_P
    for (name, pack), reference in base.references.items():
        label = f"{pack}|{name}"
        arrays[f"ids|{label}"] = reference.ids_QK
        arrays[f"log_probs|{label}"] = reference.log_probs_QK
        arrays[f"piece|{label}"] = reference.piece_Q
    for (name, pack), losses_T in base.tokens.items():
        arrays[f"tokens|{pack}|{name}"] = losses_T
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomic(path, with_digest(buffer.getvalue()))


def read_base(path: Path, key: str) -> BaseEvaluation:
    """Read an evaluation of the base model.

    Raises:
        DataError: It belongs to another model or to other data; DamagedBase, if it is damaged.
    """
    try:
        with np.load(io.BytesIO(without_digest(path.read_bytes())), allow_pickle=False) as file:
            found = str(file["key"])
            if found != key:
                raise DataError(
                    f"{path} must hold the evaluation of this run's base model and held-out data ({key[:12]}), "
                    f"but is of another one ({found[:12]}) instead. Give another run_dir, or bring back the "
                    "model and data that the run began with."
                )
            names = json.loads(str(file["sets"]))
            pieces = {name: PieceLosses(file[f"nll|{name}"], file[f"targets|{name}"]) for name in names}
            references: References = {
                key: Reference(file[f"ids|{label}"], file[f"log_probs|{label}"], file[f"piece|{label}"])
                for key, label in _of_packs(file.files, "ids|")
            }
            tokens: TokenLosses = {
                key: file[f"tokens|{label}"] for key, label in _of_packs(file.files, "tokens|")
            }
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DamagedBase(
            f"{path} must be readable, but is damaged: {error}. Delete it; palimpsest evaluate with "
            "evaluate.checkpoint=base makes it again."
        ) from error
    return BaseEvaluation(found, pieces, references, tokens)


def _of_packs(entries: Sequence[str], kind: str) -> Iterator[tuple[tuple[str, int], str]]:
    """Yield ((set, pack), the rest of the entry) of entries of one kind."""
    for label in [entry.removeprefix(kind) for entry in entries if entry.startswith(kind)]:
        pack, _, name = label.partition("|")
        yield (name, int(pack)), label
