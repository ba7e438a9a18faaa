"""Submitting to the test cluster and following a job."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path

from launch.attempts import last_job
from tests.helpers.slurm_cluster import SlurmCluster
from tests.helpers.standstill import go_on, is_waiting, stand_still
from tests.helpers.wait import PATIENT, wait_until
from trainer.cli import run_command
from trainer.metrics.jsonl import read

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "GONE")

ANY_FILE = Path(__file__).with_name("any_text.jsonl")
"""A row of text, which is looked at before a submission; nothing else is read where nothing trains."""


def overrides(project: Path, num_steps: int) -> list[str]:
    """Return a run of the tiny model on the project's corpus; fp32, so that losses can be compared exactly."""
    return [
        *(
            "model=tiny",
            "data=text",
            f"data.sources.corpus.path={project}/corpus.txt",
            "data.sources.corpus.txt_documents=line",
        ),
        *(f"data.cache_dir={project}/cache", "data.seq_len=64", "data.num_workers=1"),
        *(
            "train.global_batch_tokens=256",
            f"train.max_steps={num_steps}",
            "optim.lr=1e-3",
            "schedule=constant",
        ),
        *("zero=zero3", "zero.dtype=fp32", "evaluate.every_steps=0", "evaluate.forgetting=false"),
        *("checkpoint.every_steps=0", "log.progress=false"),
        # Tests make ranks stand still for as long as SLURM takes.
        "cluster.watch.enabled=false",
        *PATIENT,
    ]


def last_step(metrics: Path) -> int:
    """Return the newest step in a metrics.jsonl."""
    return max((int(row["step"]) for row in read(metrics)), default=0)


def trace(run_dir: Path) -> list[tuple[int, float, float]]:
    """Return loss and gradient norm of every step, in the order of the file."""
    rows = [row for row in read(run_dir / "metrics.jsonl") if "loss" in row]
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows]


class Submitted:
    """One run directory and its job."""

    def __init__(self, slurm: SlurmCluster, run_dir: Path, *overrides: str) -> None:
        """Submit through the command line."""
        self.slurm, self.run_dir = slurm, run_dir
        words = [f"run_dir={run_dir}", "cluster.node_local_paths=[/nowhere]", "cluster.time_limit_min=60"]
        assert run_command(["submit", *words, *overrides]) == 0
        job = last_job(run_dir)
        assert job is not None
        self.job = job

    @property
    def state(self) -> str:
        """Return the job's state."""
        return self.slurm.state(self.job)

    def has_ended(self) -> bool:
        """Return whether the job is over; one that requeues itself passes through FAILED for some seconds."""
        state = self.state
        return state in ENDED and (state != "FAILED" or self._is_last())

    def _is_last(self) -> bool:
        """Return whether the batch script left it at that."""
        last = next(iter(read(self.run_dir / "attempts.jsonl")[::-1]), {"event": ""})
        return last["event"] == "gave_up" or (last["event"] == "ended" and last["code"] in (0, 2, 3, 4))

    @property
    def log(self) -> str:
        """Return the output of all attempts."""
        file = self.run_dir / "logs" / f"job-{self.job}.out"
        return file.read_text(errors="replace") if file.exists() else ""

    def lines(self, event: str) -> list[dict]:
        """Return the lines of attempts.jsonl of an event."""
        return [line for line in read(self.run_dir / "attempts.jsonl") if line["event"] == event]

    def step(self) -> int:
        """Return the newest step in metrics.jsonl."""
        return last_step(self.run_dir / "metrics.jsonl")

    def wait(self, is_done: Callable[[], object], what: str) -> None:
        """Wait for a condition while the job goes through the queue again and again, but not after its end."""

        def outcome() -> str:
            # Asked before: a job may bring it about and end.
            has_ended = self.has_ended()
            return "done" if is_done() else "too late" if has_ended else ""

        found = wait_until(outcome, what, self._seen, poll_s=0.2)
        assert found == "done", f"{what}: the job has ended before.\n{self._seen()}"

    def _seen(self) -> str:
        return f"the job is {self.state}\n{self.log[-6000:]}\n{self.slurm.logs()}"

    def finish(self) -> str:
        """Wait for the end, over all requeues, and return the state."""
        self.wait(self.has_ended, "the end of the job")
        return self.state

    def wait_for_log(self, pattern: str) -> None:
        self.wait(lambda: re.search(pattern, self.log) is not None, f"'{pattern}' in the log")

    def signal_at(self, step: int) -> None:
        """Have SLURM ask the ranks for a save after a step; they stand still until all have been asked."""
        self.wait(lambda: self.step() >= step, f"step {step}")
        ranks = stand_still(self.run_dir)
        self.signal("USR1")
        self.wait(lambda: all(is_waiting(rank, signal.SIGUSR1) for rank in ranks), "the signal at the ranks")
        go_on(ranks)
        self.wait(lambda: len(self.lines("ended")) == 1, "the end after a signal")

    def signal(self, name: str, *options: str) -> None:
        self.slurm.ask("scancel", f"--signal={name}", *options, str(self.job))
