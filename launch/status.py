"""`palimpsest status`: where a run, or every run of a folder, stands. Reads files only; loads no torch."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from trainer.checkpoint.layout import find_checkpoints, step_of
from trainer.errors import ConfigError, Exit
from trainer.metrics.console import duration_text
from trainer.metrics.effective import effective
from trainer.metrics.jsonl import has_numbers, read
from trainer.metrics.remaining import remaining_s
from trainer.runtime.ended import End
from trainer.runtime.lease import is_held
from trainer.runtime.say import say

from .attempts import SCRIPT, Attempts, events, last_job, read_attempts
from .points import Goal, read_record
from .slurm import job_states

ENDS = {"finished": "finished", "early_stop": "stopped early", "non_finite": "not finite", "failed": "failed"}
CODES: Mapping[int, str] = {
    Exit.done: "finished",
    Exit.mendable: "must be mended",
    Exit.refused: "refused",
    Exit.non_finite: "not finite",
}
RUNNING = "running"
ETTR = "ETTR, the effective training time ratio: the share of a run's time that went into steps that stayed."
DIED = "died, "
"""How the state of a run begins that nobody trains, and of whose end nothing was written; then what is saved of it."""
STOPPED = "stopped, "
"""How that of a run begins that was told to stop."""


@dataclass(frozen=True, slots=True)
class RunStatus:
    """One row."""

    name: str
    state: str
    num_attempts: int
    step: int
    num_steps: int | None
    loss: float | None
    tokens_per_s: float | None
    eta_s: float | None
    last_error: str | None
    effective: float | None = None
    """Share of the time so far that went into steps that stayed."""
    shrunk: str | None = None
    """That the run went on with fewer nodes, in words."""
    objective: float | None = None
    """Of a point of a sweep, as far as it was logged."""
    ended: str | None = None
    """When the newest attempt ended other than well, and with which exit code, in words."""
    goes_on: str | None = None
    """How a run that died or was stopped goes on, and from where."""


def show_status(words: Sequence[str]) -> int:
    """Print the runs that the words name; return the exit code.

    Raises:
        ConfigError: A word is no run directory, and no folder with run directories.
    """
    folders = [Path(word.removeprefix("run_dir=")).expanduser() for word in words or ["runs"]]
    found = [(run, goal, _shown(run, folder)) for folder in folders for run, goal in _with_goals(folder)]
    jobs = [job for job in (last_job(run) for run, *_ in found) if job is not None]
    states = job_states(jobs) or {}
    statuses = [
        dataclasses.replace(
            run_status(run, states), name=name, objective=None if goal is None else goal.measure(run)
        )
        for run, goal, name in found
    ]
    names = {goal.objective for _, goal, _ in found if goal is not None}
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(_table(statuses, " ".join(names) if len(names) < 2 else "objective"))
    for status, (_, goal, _) in zip(statuses, found, strict=True):
        # A point goes on with its sweep.
        goes_on = status.goes_on if goal is None else None
        for line in (status.shrunk, _why(status), goes_on):
            if line is not None:
                say(console, f"{status.name}: {line}")
    if any(status.effective is not None for status in statuses):
        say(console, ETTR)
    return Exit.done


def _why(status: RunStatus) -> str | None:
    """Return when and why a run ended, or the last error of one that goes on; None where there is none."""
    return ": ".join(filter(None, (status.ended, status.last_error))) or None


def _with_goals(folder: Path) -> list[tuple[Path, Goal | None]]:
    """Return the runs of a folder, and what they are compared by if it is a sweep's, whose points may wait still."""
    sweep = None if folder.is_file() else read_record(folder)
    if sweep is None:
        return [(run, None) for run in find_runs(folder)]
    return [(folder / point.name, sweep.goal) for point in sweep.points]


def _shown(run: Path, folder: Path) -> str:
    """Return the name of a run with the folders that lead to it, such as that of its sweep."""
    return run.name if run == folder else str(run.relative_to(folder))


def find_runs(folder: Path) -> list[Path]:
    """Return the folder itself when it is a run, else the runs in it.

    Raises:
        ConfigError: There is none.
    """
    if folder.is_file():
        raise ConfigError(
            f"`palimpsest status` must be given a run directory or a folder of them, but {folder} is a file instead. "
            f"Give {folder.absolute().parent}."
        )
    if (folder / "config.yaml").is_file():
        return [folder]
    found = sorted(path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/config.yaml"))
    if not found:
        raise ConfigError(
            f"`palimpsest status` must be given a run directory or a folder of them, but {folder} holds no "
            "config.yaml instead. Give RUN_DIR."
        )
    return found


def run_status(run_dir: Path, states: Mapping[int, str] | None = None) -> RunStatus:
    """Return what the files of a run tell; a run that has not begun has step 0.

    Args:
        states: The queue, when it was asked already.
    """
    metrics = read(run_dir / "metrics.jsonl")
    newest: dict[str, Any] = {}
    for record in metrics:
        newest |= record
    attempts = read_attempts(run_dir)
    step = max((int(record["step"]) for record in metrics if has_numbers(record, "step")), default=0)
    state = _state(run_dir, attempts, states)
    is_left, is_wrong = state.startswith((DIED, STOPPED)), state == CODES[Exit.mendable]
    has_ended = is_left or attempts.end is not None or state in (*ENDS.values(), *CODES.values(), "gave up")
    return RunStatus(
        name=run_dir.name,
        state=state,
        num_attempts=attempts.num_started,
        step=step,
        num_steps=_num_steps(run_dir),
        loss=_number(newest, "loss"),
        tokens_per_s=_number(newest, "tokens_per_s"),
        eta_s=None if has_ended else remaining_s(metrics),
        last_error=None if state == "finished" else attempts.last_error,
        effective=effective(run_dir).ratio,
        shrunk=attempts.shrunk,
        ended=None if attempts.end is None or state == "running" else _ended(attempts.end),
        goes_on=_goes_on(run_dir, is_left)
        if is_left or (is_wrong and _saved_step(run_dir) is not None)
        else None,
    )


def _ended(end: End) -> str:
    day = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(end.time))
    return f"ended {day} with exit code {end.code}"


def _number(record: Mapping[str, Any], key: str) -> float | None:
    """Return a number of a record, finite or not; None where there is none, as in a damaged line."""
    value = record.get(key)
    return value if isinstance(value, int | float) else None


def _state(run_dir: Path, attempts: Attempts, states: Mapping[int, str] | None) -> str:
    """Return a word: what the queue says, else the script, else the ledger."""
    job = attempts.job
    if states is None and job is not None:
        states = job_states([job])
    queued = (states or {}).get(job) if job is not None else None
    if queued in ("PENDING", "RUNNING", "COMPLETING", "SUSPENDED", "CONFIGURING"):
        return queued.lower()
    if attempts.gave_up:
        return "gave up"
    if attempts.last_code is not None:
        return _of_code(run_dir, attempts.last_code)
    if queued is not None:
        return queued.lower().replace("_", " ")
    if attempts.end is not None:
        return _of_code(run_dir, attempts.end.code)
    stops, starts = events(run_dir, "stopped"), events(run_dir, "started")
    is_stopped = bool(stops) and (not starts or stops[-1]["time"] >= starts[-1]["time"])
    # An attempt is there before the ledger has a line of it: the model is loaded and proved first.
    if not is_stopped and (starts or attempts.num_started):
        return _begun(run_dir)
    if is_stopped and attempts.num_started and _begun(run_dir) == RUNNING:
        return RUNNING
    if stops:
        return ENDS.get(str(stops[-1].get("reason"))) or f"{STOPPED}{_saved(run_dir)}"
    return "submitted" if attempts.job is not None else "not begun"


def _of_code(run_dir: Path, code: int) -> str:
    """Return the state of a run whose newest attempt ended with an exit code."""
    if code == Exit.preempted:
        return f"{STOPPED}{_saved(run_dir)}"
    return CODES.get(code, f"failed ({code})")


def _begun(run_dir: Path) -> str:
    """Return whether the process that trains is there; what cannot be told is "begun"."""
    is_there = is_held(run_dir)
    if is_there is None:
        return "begun"
    return RUNNING if is_there else f"{DIED}{_saved(run_dir)}"


def _saved(run_dir: Path) -> str:
    """Return what is saved of a run: it may end before there is anything to save."""
    step = _saved_step(run_dir)
    return f"step {step} saved" if step is not None else "nothing saved"


def _saved_step(run_dir: Path) -> int | None:
    newest = next(iter(find_checkpoints(run_dir)), None)
    return None if newest is None else step_of(newest)


def _goes_on(run_dir: Path, is_sound: bool) -> str:
    """Return from where a run goes on that is not over, and by which command; what is wrong must be mended first."""
    step = _saved_step(run_dir)
    start = "from the beginning, since nothing is saved" if step is None else f"after step {step}"
    command = (
        "palimpsest submit with the same words"
        if (run_dir / SCRIPT).exists()
        else f"palimpsest train --config {shlex.quote(str(run_dir / 'config.yaml'))}"
    )
    first = "To go on" if is_sound else "Once that is mended, to go on"
    return f"{first} {start}, give the same command again, or: {command}"


def _num_steps(run_dir: Path) -> int | None:
    """Return the length of the run: as it found it when it began, else as configured."""
    starts = events(run_dir, "started")
    if starts and has_numbers(starts[-1], "num_steps"):
        return int(starts[-1]["num_steps"])
    try:
        config = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
        steps = config["train"]["max_steps"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return None
    return None if steps is None else int(steps)


def _table(statuses: Sequence[RunStatus], objective: str) -> Table:
    """Return the rows; `objective` is its name, empty where no run is a point of a sweep."""
    table = Table(box=None, pad_edge=False)
    headings = ["run", "state", "attempts", "step", "loss", "tokens/s", "left", "ETTR"]
    for heading in [*headings, objective] if objective else headings:
        table.add_column(heading, justify="left" if heading in ("run", "state") else "right", no_wrap=True)
    for one in statuses:
        steps = f"{one.step}/{one.num_steps}" if one.num_steps is not None else str(one.step)
        last = [] if not objective else ["" if one.objective is None else f"{one.objective:.4f}"]
        table.add_row(
            one.name,
            one.state,
            str(one.num_attempts),
            steps,
            "" if one.loss is None else f"{one.loss:.4f}",
            "" if one.tokens_per_s is None else f"{one.tokens_per_s:,.0f}",
            "" if one.eta_s is None else duration_text(one.eta_s),
            "" if one.effective is None else f"{one.effective:.0%}",
            *last,
        )
    return table
