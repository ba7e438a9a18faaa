"""What happened to the attempts of a run: read from attempts.jsonl, the ledger and the logs. No torch."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.many import many
from trainer.errors import Exit
from trainer.metrics.jsonl import has_numbers, read, read_events
from trainer.runtime.ended import End, read_end
from trainer.runtime.log import attempt_dirs

SCRIPT = "job.sh"
"""The batch script that `palimpsest submit` writes into a run directory."""
RECORD = "attempts.jsonl"
"""One line an event: submitted and queued by `palimpsest submit`; started, ended, lost and gave_up by the script."""
# Behind the labels of srun, of our ranks and of torch's.
_ERROR = re.compile(r"^(?:\d+: )?(?:\[rank ?\d+\]:? )?(Error\b.*|[\w.]*(?:Error|Exception): .*)$")
PREFLIGHT = "preflight.json"
"""What the checks of the nodes found, in the folder of logs of an attempt."""
_SCHEDULER_ERROR = re.compile(r"^(?:\d+: )?((?:srun|slurmstepd): error: .*)$")
_TAIL_BYTES = 200_000
FINAL_CODES = (Exit.done, Exit.mendable, Exit.refused, Exit.non_finite)
"""Exit codes after which the batch script does not try again."""


@dataclass(frozen=True, slots=True)
class Attempts:
    """Attempts of one run directory."""

    num_started: int
    job: int | None
    last_code: int | None
    """Exit code of the last attempt; None while it runs, or when it was killed with its node."""
    gave_up: bool
    last_error: str | None
    end: End | None = None
    """How the newest attempt ended, as its ranks say it."""
    shrunk: str | None = None
    """Which attempt of the job went on with fewer nodes, in words: the newest one that did."""


def read_attempts(run_dir: Path) -> Attempts:
    """Return what the files of a run directory tell."""
    lines = read(run_dir / RECORD)
    started = [line for line in lines if line["event"] == "started"]
    after = lines[lines.index(started[-1]) + 1 :] if started else []
    codes = [line["code"] for line in after if line["event"] == "ended"]
    folders = attempt_dirs(run_dir)
    return Attempts(
        num_started=max(len(started), len(folders)),
        job=last_job(run_dir),
        last_code=codes[-1] if codes else None,
        gave_up=any(line["event"] == "gave_up" for line in after),
        last_error=_last_error(folders),
        end=read_end(folders[0]) if folders else None,
        shrunk=_shrunk(lines),
    )


def _shrunk(lines: Iterable[dict[str, Any]]) -> str | None:
    """Return what the newest line of lost nodes tells since the last submission."""
    found: str | None = None
    for line in lines:
        if line["event"] == "submitted":
            found = None
        elif line["event"] == "lost":
            nodes = f"{line['left']} of {many(line['of'], 'node')}"
            found = f"attempt {line['attempt'] + 1} went on with {nodes}: {line['nodes']} was lost"
    return found


def final_code(run_dir: Path) -> int | None:
    """Return the exit code that ended the run since it was last submitted, that of a death when the script gave up.

    None while another attempt may follow.
    """
    lines = read(run_dir / RECORD)
    submitted = [number for number, line in enumerate(lines) if line["event"] == "submitted"]
    lines = lines[submitted[-1] + 1 :] if submitted else lines
    if any(line["event"] == "gave_up" for line in lines):
        return Exit.died
    codes = [line.get("code") for line in lines if line["event"] in ("started", "ended")]
    return codes[-1] if codes and codes[-1] in FINAL_CODES else None


def has_finished(run_dir: Path) -> bool:
    """Tell whether a run has ended well, as its script says, or its ledger where no script started it."""
    if (run_dir / RECORD).exists():
        return final_code(run_dir) == Exit.done
    ends = [one for one in read_events(run_dir / "ledger.jsonl") if one["event"] in ("started", "stopped")]
    return bool(ends) and ends[-1].get("reason") in ("finished", "early_stop")


def note(run_dir: Path, event: str, **fields: object) -> None:
    """Append a line to the record, in the form of the batch script's."""
    line = json.dumps({"event": event, **fields, "time": round(time.time())}, separators=(",", ":"))
    with (run_dir / RECORD).open("a", encoding="utf-8") as record:
        record.write(f"{line}\n")


def last_job(run_dir: Path) -> int | None:
    """Return the job that was submitted last."""
    jobs = [line["job"] for line in read(run_dir / RECORD) if "job" in line]
    return int(jobs[-1]) if jobs else None


def measured_save_s(run_dir: Path) -> float | None:
    """Return the longest save of the run so far in seconds."""
    times = [float(line["seconds"]) for line in events(run_dir, "saved") if has_numbers(line, "seconds")]
    return max(times, default=None)


def events(run_dir: Path, name: str) -> list[dict[str, Any]]:
    """Return the ledger's events of a name."""
    return [one for one in read_events(run_dir / "ledger.jsonl") if one["event"] == name]


def _last_error(folders: Iterable[Path]) -> str | None:
    """Return the first error line of the newest attempt that has one: later lines follow from it.

    A line of SLURM counts where the ranks said nothing; it may stand before theirs, and only tells their exit code.
    """
    for folder in folders:
        end = read_end(folder)
        if end is not None and end.sentence:
            return end.sentence
        found = _failed_check(folder)
        if found is not None:
            return found
        lines = [
            line
            for file in [folder / "console.log", *sorted(folder.glob("rank-*.log"))]
            for line in _tail(file)
        ]
        for pattern in (_ERROR, _SCHEDULER_ERROR):
            match = next(filter(None, map(pattern.match, lines)), None)
            if match:
                return match.group(1)
    return None


def _failed_check(folder: Path) -> str | None:
    """Return what the checks of the nodes found first in an attempt; None where they passed, or said nothing.

    Why a node did not come is not known to the others: where it could, it said so itself, in the console's lines.
    """
    try:
        problems = json.loads((folder / PREFLIGHT).read_text(encoding="utf-8"))["problems"]
        first = f"Error: {problems[0]['sentence']}"
        if problems[0]["check"] == "rendezvous":
            return None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return first if len(problems) == 1 else f"{first} (and {len(problems) - 1} more)"


def _tail(file: Path) -> list[str]:
    try:
        with file.open("rb") as opened:
            opened.seek(max(opened.seek(0, 2) - _TAIL_BYTES, 0))
            return opened.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return []
