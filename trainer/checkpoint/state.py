"""What a resumed run must know besides weights and optimizer: one small JSON file."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.errors import CheckpointError

VERSION = 3


@dataclass(slots=True)
class TrainState:
    """Where a run stands."""

    step: int = 0
    """Optimizer steps done, skipped ones included."""
    tokens_seen: int = 0
    """Tokens of all packs so far, over all ranks."""
    targets_by_source: dict[str, int] = field(default_factory=dict)
    """Supervised tokens so far by source."""
    tokens_by_source: dict[str, int] = field(default_factory=dict)
    """Tokens of packs so far by source, supervised or not."""
    plan: dict[str, Any] = field(default_factory=dict)
    """Where the data plan stands, as `Cursor.to_plain` gives it."""
    replay_ratio: float = 0.0
    """Replay ratio asked for in the last step."""
    ratio_changes: list[list[float]] = field(default_factory=list)
    """The controller's decisions: [first step, ratio]."""
    base_losses: dict[str, float] = field(default_factory=dict)
    """Held-out loss by source before the first step."""
    data_digest: str = ""
    """Chained digest of the tokens of every step, in order."""
    skipped_steps: int = 0
    """Steps that were not applied or not finite."""
    bad_steps_in_a_row: int = 0
    """Such steps at the end of the run so far."""
    best_loss: float | None = None
    """Lowest mean held-out loss in nats, by more than min_delta_nats; for patience."""
    best_step: int | None = None
    """Step of the best checkpoint."""
    best_metric: str = ""
    """Number that it is the best by."""
    best_value: float | None = None
    """That number of it."""
    evaluations_without_gain: int = 0
    """Evaluations since the lowest loss."""
    last_losses: dict[str, float] = field(default_factory=dict)
    """Newest held-out loss by source."""
    last_evaluated_step: int = -1
    """Step of the newest evaluation."""
    during: dict[str, Any] = field(default_factory=dict)
    """Benchmark tasks and answers so far, as `Budget.to_plain` gives it; empty without."""
    usual: dict[str, list[float]] = field(default_factory=dict)
    """Loss and gradient norm of the last good steps, by which spikes are told."""
    spikes_in_a_row: int = 0
    """Spikes at the end of the run so far."""
    rewinds: int = 0
    """Times the run went back before a spike."""
    passed_over: list[int] = field(default_factory=list)
    """Zero-based steps whose data is passed over when they come."""
    attempts: int = 1
    """Starts of this run, this one included."""


def write_state(path: Path, state: TrainState) -> None:
    """Write the state as JSON."""
    record = {"version": VERSION, **dataclasses.asdict(state)}
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def read_state(path: Path) -> TrainState:
    """Read a state file.

    Raises:
        CheckpointError: Written by another version of the format.
    """
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    version = record.pop("version", None)
    if version != VERSION:
        raise CheckpointError(
            f"{path} must be of format version {VERSION}, but is {version} instead. Resume with the "
            "version of palimpsest that wrote it."
        )
    return TrainState(**record)
