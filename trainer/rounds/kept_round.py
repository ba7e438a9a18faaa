"""A round on disk: what was sampled, in the run directory, before anything is learnt from it.

One file a round, rounds/NNNNNN.jsonl: a line that says what follows and its digest, then a line an answer. A run that
goes on in the middle of a round reads it, because the weights that sampled it are gone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.snapshot import write_atomic
from trainer.errors import CheckpointError
from trainer.rounds.asked_pieces import PiecePlace
from trainer.sample.keyed import KeyedAnswer

FOLDER = "rounds"


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """The answers of a round."""

    number: int
    step: int
    """Optimizer steps that were done when it was sampled."""
    answers: dict[PiecePlace, KeyedAnswer]

    @property
    def num_tokens(self) -> int:
        """Return the tokens that were sampled."""
        return sum(len(answer.tokens) for answer in self.answers.values())

    @property
    def num_ended(self) -> int:
        """Return the answers that ended by themselves."""
        return sum(answer.has_ended for answer in self.answers.values())


def round_file(run_dir: Path, number: int) -> Path:
    """Return where a round is kept."""
    return run_dir / FOLDER / f"{number:06d}.jsonl"


def write_round(run_dir: Path, record: RoundRecord, names: Sequence[str]) -> str:
    """Keep a round, in the place of one that an earlier attempt may have left, and return the digest of its answers.

    Raises:
        OSError: It cannot be written.
    """
    lines = [_line(place, answer, names) for place, answer in record.answers.items()]
    digest = answers_digest(lines)
    head = {"round": record.number, "step": record.step, "answers": len(lines), "digest": digest}
    file = round_file(run_dir, record.number)
    file.parent.mkdir(exist_ok=True)
    write_atomic(file, "\n".join([json.dumps(head), *lines]) + "\n")
    return digest


def read_round(run_dir: Path, number: int, names: Sequence[str], digest: str) -> RoundRecord:
    """Read a round that a checkpoint or the ledger knows.

    Raises:
        CheckpointError: It is not there, or is not the one with this digest.
    """
    file = round_file(run_dir, number)
    try:
        head, *lines = file.read_text(encoding="utf-8").splitlines()
        step = int(json.loads(head)["step"])
        found = answers_digest(lines)
        if found != digest:
            raise ValueError(f"its answers have the digest {found}")
        answers = dict(_read(json.loads(line), names) for line in lines)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{file} must hold the answers that the run learns from ({digest}), but does not: {error}. Bring it back "
            "from its source, or remove the checkpoints since its first step and start again from an earlier one."
        ) from error
    return RoundRecord(number, step, answers)


def answers_digest(lines: Sequence[str]) -> str:
    """Return the digest of the answers of a round, as they are written."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def _line(place: PiecePlace, answer: KeyedAnswer, names: Sequence[str]) -> str:
    record = {**place._asdict(), "source": names[place.source]}
    return json.dumps({**record, "has_ended": answer.has_ended, "tokens": answer.tokens})


def _read(record: dict[str, Any], names: Sequence[str]) -> tuple[PiecePlace, KeyedAnswer]:
    source = list(names).index(record["source"])
    place = PiecePlace(source, int(record["pack"]), int(record["epoch"]), int(record["piece"]))
    return place, KeyedAnswer([int(token) for token in record["tokens"]], bool(record["has_ended"]))
