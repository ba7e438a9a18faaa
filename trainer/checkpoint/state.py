"""What a resumed run must know besides weights and optimizer: one small JSON file."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.errors import CheckpointError, DamagedError

VERSION = 3
MOST = 2**63
"""No number of a run is as large."""


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
    choices: list[dict[str, Any]] = field(default_factory=list)
    """Which replay packs come before others, as `Choice.to_plain` gives it; empty with replay.choice=uniform."""
    round: dict[str, Any] = field(default_factory=dict)
    """Newest round of sampled answers, as `RoundNote` has it; empty without any."""
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


def read_state(path: Path, step: int | None = None) -> TrainState:
    """Read a state file.

    Args:
        step: Of the checkpoint by its manifest, where that is known.
    Raises:
        DamagedError: It holds what no run writes, whoever sealed it.
        CheckpointError: Written by another version of the format.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} must be JSON, but is not: {error}. {_FIX}") from error
    version = record.pop("version", None) if isinstance(record, dict) else None
    if type(version) is int and version != VERSION:
        raise CheckpointError(
            f"{path} must be of format version {VERSION}, but is {version} instead. Resume with the "
            "version of palimpsest that wrote it."
        )
    kinds = typing.get_type_hints(TrainState)
    if version is None or not record.keys() <= kinds.keys():
        raise DamagedError(f"{path} must have the keys of a run's state, but has others instead. {_FIX}")
    for name, value in record.items():
        if not _fits(value, kinds[name]):
            raise DamagedError(f"{path} has a value of another kind for {name} than a run writes. {_FIX}")
    state = TrainState(**record)
    _check_together(path, state, step)
    return state


_FIX = "Bring the checkpoint back from its source, or go on from another."
PARTS: dict[str, dict[str, Any]] = {
    "plan": {"step": int, "positions": list[int], "targets": list[int], "balance": int},
    "round": {"number": int, "digest": str, "chain": str},
    "during": {"wall_s": float, "spent_s": float, "last_s": float, "is_owed": bool},
}
"""What `Cursor`, `RoundNote` and `Budget` keep here, and the kinds of it."""


def _check_together(path: Path, state: TrainState, step: int | None) -> None:
    """Refuse what does not go together: another step's data would be consumed."""
    plan = state.plan
    for name, kinds in PARTS.items():
        found = getattr(state, name)
        if found and not (
            found.keys() == kinds.keys() and all(_fits(found[key], kinds[key]) for key in kinds)
        ):
            raise DamagedError(f"{path} has a value of another kind for {name} than a run writes. {_FIX}")
    if not all(_is_choice(one) for one in state.choices):
        raise DamagedError(f"{path} has a value of another kind for choices than a run writes. {_FIX}")
    if any(len(change) != 2 for change in state.ratio_changes):
        raise DamagedError(f"{path} has a value of another kind for ratio_changes than a run writes. {_FIX}")
    steps = {state.step, *([plan["step"]] if plan else ()), *(() if step is None else (step,))}
    least = min(
        state.step, state.tokens_seen, state.skipped_steps, state.attempts, *plan.get("positions", ())
    )
    if len(steps) > 1 or least < 0:
        raise DamagedError(
            f"{path} must be of one step of a run, but its numbers are of {', '.join(map(str, sorted(steps)))} or "
            f"below 0 instead. {_FIX}"
        )


CHOICE: dict[str, Any] = {
    **{"step": int, "pool": str, "begin": int, "packs": list[int], "num_wanted": int, "num_candidates": int},
    **{"rise_chosen": float, "rise_candidates": float},
}
"""What `Choice` keeps, and the kinds of it."""


def _is_choice(found: dict[str, Any]) -> bool:
    return found.keys() == CHOICE.keys() and all(_fits(found[key], kind) for key, kind in CHOICE.items())


def _fits(value: Any, kind: Any) -> bool:
    """Tell whether a value that JSON gave is of a kind; a whole number is a number too."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return True
    if origin is types.UnionType:
        return any(_fits(value, one) for one in inner)
    if origin is list:
        return isinstance(value, list) and all(_fits(one, inner[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(one, inner[1]) for one in value.values())
    if type(value) is int:
        return kind in (int, float) and abs(value) < MOST
    return type(value) is kind
