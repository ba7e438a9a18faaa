"""Wait until the jobs of runs have ended: through requeues, restarts of the controller and delays of a shared disk."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from .attempts import final_code, last_job
from .slurm import ENDED, job_states

SETTLE_S = 30.0
"""A job that requeues itself is over for some seconds; after so many it does not come back."""


def ended_runs(runs: Sequence[Path], poll_s: float) -> Iterator[Path]:
    """Yield each run when it has ended, in the order in which they end.

    The script's last line decides, where it will not try again. Where there is none, because the job was cancelled, or
    its node and the script with it are gone, the queue does, once it has said so for `SETTLE_S`. A controller that does
    not answer ends nothing.
    """
    waiting = list(runs)
    over_since: dict[Path, float] = {}
    while waiting:
        jobs = {run_dir: last_job(run_dir) for run_dir in waiting}
        states = job_states([job for job in jobs.values() if job is not None])
        for run_dir in list(waiting):
            if final_code(run_dir) is None:
                if states is None or not _is_over(jobs[run_dir], states):
                    over_since.pop(run_dir, None)
                    continue
                since = over_since.setdefault(run_dir, time.monotonic())
                if time.monotonic() - since < SETTLE_S:
                    continue
            waiting.remove(run_dir)
            yield run_dir
        if waiting:
            time.sleep(poll_s)


def _is_over(job: int | None, states: dict[int, str]) -> bool:
    """Tell whether the queue has forgotten a job, or says that it has ended."""
    return job is None or states.get(job, "COMPLETED") in ENDED
