"""How far a run has come by its own records, and what is left of it."""

from __future__ import annotations

import shlex
from pathlib import Path

from trainer.checkpoint.state import TrainState
from trainer.config.many import many
from trainer.config.schema import RunConfig
from trainer.config.snapshot import config_path
from trainer.metrics.console import duration_text
from trainer.metrics.jsonl import has_numbers, read, read_events
from trainer.metrics.remaining import remaining_s
from trainer.runtime.lease import is_held

ENDS = {"finished": "finished", "early_stop": "finished: it stopped early, by evaluate.patience"}


def how_far(config: RunConfig, saved: TrainState | None) -> str:
    """Return in sentences how far a run has come, and what it needs to come to its end.

    Args:
        saved: The state of the newest checkpoint that can be used.
    """
    run_dir, step = Path(config.run_dir), 0 if saved is None else saved.step
    events = [one for one in read_events(run_dir / "ledger.jsonl") if one["event"] in ("started", "stopped")]
    planned = [int(one["num_steps"]) for one in events if has_numbers(one, "num_steps")]
    num_steps = planned[-1] if planned else None
    of = f"{step} of {many(num_steps, 'step')}" if num_steps is not None else many(step, "step")
    end = ENDS.get(str(events[-1].get("reason"))) if events else None
    if end is not None and step >= int(events[-1]["step"]):
        return f"The run is {end}: {of}."
    rows = [row for row in read(run_dir / "metrics.jsonl") if has_numbers(row, "step", "step_time_s")]
    is_trained = is_held(run_dir)
    num_after = max((int(row["step"]) - step for row in rows), default=0)
    said = f"The run is not finished: {of} {_are(step)} saved"
    if num_after > 0:
        again = "taken" if is_trained else "taken again"
        said += f", and {many(num_after, 'step')} after that {_are(num_after)} {again}"
    if num_steps is not None:
        begin = step + max(num_after, 0) if is_trained else step
        left_s = remaining_s(rows, begin)
        said += f". {_left(num_steps - begin, config.train.global_batch_tokens, left_s)}"
    said += "."
    if is_trained:
        return f"{said} It is being trained."
    where = shlex.quote(str(config_path(run_dir)))
    return (
        f"{said} To go on with the data and the model that it began with, give the same command again, or: "
        f"palimpsest train --config {where}"
    )


def _left(num_steps: int, tokens_a_step: int, left_s: float | None) -> str:
    """Return what is left: steps, their tokens, and the time that they and evaluations take where some were timed."""
    if num_steps <= 0:
        return "The comparison with the base and the report are left"
    time = "" if left_s is None else f", {duration_text(left_s)} at the pace so far"
    tokens = f"{num_steps * tokens_a_step:,} tokens"
    return f"{many(num_steps, 'step')} {_are(num_steps)} left ({tokens}{time})"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
