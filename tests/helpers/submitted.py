"""Submitting to the test cluster and following a job."""

from __future__ import annotations

import re
import time
from pathlib import Path

from launch.attempts import last_job
from tests.helpers.slurm_cluster import SlurmCluster
from trainer.cli import run_command
from trainer.metrics.jsonl import read

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "GONE")

START_S = 300
"""An attempt takes 15 s to begin on a quiet machine."""


def overrides(project: Path, num_steps: int) -> list[str]:
    """Return a run of the tiny model on the project's corpus; fp32, so that losses can be compared exactly."""
    return [
        *(
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
    ]


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
        """Return whether the job is over; one that requeues itself passes through FAILED."""
        state = self.state
        if state == "FAILED" and not self._is_last():
            # Ten seconds are more than SLURM needs to put it back.
            for _ in range(100):
                time.sleep(0.1)
                state = self.state
                if state != "FAILED" or self._is_last():
                    break
        return state in ENDED

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
        return max((int(row["step"]) for row in read(self.run_dir / "metrics.jsonl")), default=0)

    def wait(self, is_done, timeout_s: float, what: str) -> None:
        """Wait for a condition; the job may go through the queue again and again."""
        end = time.monotonic() + timeout_s
        while not is_done():
            has_ended = self.has_ended() and not is_done()
            if has_ended or time.monotonic() > end:
                why = f"the job is {self.state}" if has_ended else f"not within {timeout_s} s"
                raise AssertionError(f"{what}: {why}\n{self.log[-6000:]}\n{self.slurm.logs()}")
            time.sleep(0.2)

    def finish(self, timeout_s: float = 60) -> str:
        """Wait for the end, over all requeues, and return the state."""
        self.wait(self.has_ended, timeout_s, "the end of the job")
        return self.state

    def wait_for_log(self, pattern: str, timeout_s: float = 30) -> None:
        self.wait(lambda: re.search(pattern, self.log) is not None, timeout_s, f"'{pattern}' in the log")

    def signal(self, name: str, *options: str) -> None:
        self.slurm.ask("scancel", f"--signal={name}", *options, str(self.job))
