"""RunRecord: what the files of a run directory say. Nothing else feeds the report."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from trainer.config.yaml_text import plain, text_of
from trainer.errors import TrainerError
from trainer.evaluate.forgotten import FILE_NAME as FORGOTTEN
from trainer.evaluate.forgotten import ForgottenDocument, read_forgotten
from trainer.evaluate.layer_drift import FILE_NAME as DRIFT
from trainer.evaluate.layer_drift import DriftRecord, read_drift
from trainer.evaluate.record import FILE_NAME, ForgettingRecord, read_forgetting
from trainer.metrics.jsonl import changed_line
from trainer.metrics.jsonl import read as read_lines
from trainer.report.series import Metrics

_LOG = logging.getLogger(__name__)

FILES = (FILE_NAME, "metrics.jsonl", "ledger.jsonl", "config.yaml", "provenance.json")


@dataclass(frozen=True, slots=True)
class RunRecord:
    """The files of a run; what is missing is None or empty."""

    run_dir: Path
    forgetting: ForgettingRecord | None
    metrics: Metrics
    events: tuple[dict[str, Any], ...]
    config: dict[str, Any]
    config_digest: str | None
    provenance: dict[str, Any]
    samples: tuple[dict[str, Any], ...] = ()
    """Rows of samples.jsonl."""
    margins: dict[str, Any] = field(default_factory=dict)
    """held_out_margins.json."""
    drift: DriftRecord | None = None
    """layer_drift.json; None where there is none of that checkpoint."""
    forgotten: tuple[ForgottenDocument, ...] | None = None
    """forgotten_documents.json; None where there is none of the checkpoint that forgetting.json is about."""

    @property
    def name(self) -> str:
        """The run's name as the configuration has it, or the folder's."""
        if self.forgetting is not None:
            return self.forgetting.run.name
        return str(self.config.get("name") or self.run_dir.name)

    @property
    def is_reward(self) -> bool:
        """Tell whether the run trained a reward model."""
        return bool(self.setting("objective.kind") == "reward")

    def setting(self, key: str) -> Any:
        """Return the value of a dotted key of config.yaml; None where it is missing."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value


def read_run(run_dir: Path) -> RunRecord:
    """Read what there is in a run directory; a torn last line of a .jsonl file is left out.

    Raises:
        TrainerError: The directory holds no run, or a file of it cannot be understood.
    """
    if not any((run_dir / name).is_file() for name in FILES):
        raise TrainerError(
            f"`run_dir` must hold a run, but {run_dir} has none of {', '.join(FILES)} instead. Give the "
            "directory of a trained run."
        )
    config_path = run_dir / "config.yaml"
    digest = hashlib.sha256(config_path.read_bytes()).hexdigest() if config_path.is_file() else None
    forgetting = read_forgetting(run_dir / FILE_NAME)
    return RunRecord(
        run_dir=run_dir,
        forgetting=forgetting,
        metrics=Metrics(run_dir / "metrics.jsonl", _rows(run_dir / "metrics.jsonl")),
        events=_events(run_dir / "ledger.jsonl"),
        config=_mapping(config_path),
        config_digest=digest,
        provenance=_mapping(run_dir / "provenance.json"),
        samples=_samples(run_dir / "samples.jsonl"),
        margins=_mapping(run_dir / "held_out_margins.json"),
        drift=None if forgetting is None else read_drift(run_dir / DRIFT, forgetting.run.tuned),
        forgotten=None if forgetting is None else read_forgotten(run_dir / FORGOTTEN, forgetting.run.tuned),
    )


def _events(path: Path) -> tuple[dict[str, Any], ...]:
    number = changed_line(path)
    if number is not None:
        _LOG.warning("%s:%d is not as it was written: what it says of the run may not be true.", path, number)
    return _rows(path)


def _samples(path: Path) -> tuple[dict[str, Any], ...]:
    rows = _rows(path)
    wanted = {"number": int, "origin": str, "prompt": str, "answer": str, "expected": str, "has_ended": bool}
    for line, row in enumerate(rows, start=1):
        for key, kind in wanted.items():
            if not isinstance(row.get(key), kind):
                raise TrainerError(
                    f"`{key}` of {path}:{line} must be {kind.__name__}, but is {row.get(key)!r} instead. Delete that "
                    "line."
                )
    return rows


def _rows(path: Path) -> tuple[dict[str, Any], ...]:
    rows = read_lines(path)
    for number, row in enumerate(rows, start=1):
        step = row.get("step")
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise TrainerError(
                f"`step` of {path}:{number} must be a whole number from 0 up, but is {step!r} instead. "
                "Delete that line."
            )
    return tuple(rows)


def _mapping(path: Path) -> dict[str, Any]:
    """Read a JSON or YAML file that holds one mapping; empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes()) if path.suffix == ".json" else plain(text_of(path))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise TrainerError(
            f"{path} must be whole {path.suffix[1:].upper()}, but cannot be read: {why}. Restore it."
        ) from error
    if not isinstance(found, dict):
        raise TrainerError(f"{path} must be one mapping, but is {str(found)[:40]!r} instead. Restore it.")
    return found
