"""A rank of a real run that hangs, is stopped or is slow is named, and nobody is left."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.ranks import STARTING, only, own_environment, settle_in
from tests.helpers.wait import LIMIT_S, wait_until
from trainer.metrics.jsonl import read
from trainer.start.local import held_port

LIMIT = 8
"""Seconds that a rank may stand still here: many times what a step takes on a busy machine."""
WATCH = ("cluster.watch.beat_s=0.2", f"cluster.watch.step_s={LIMIT}")
LIMIT_OF_STEP = 4
"""Where what is slow is no step: less, so that nobody waits for long."""
AT_STEP = 6
Process = multiprocessing.context.ForkServerProcess


def be_rank(variables: dict[str, str], folder: str, log: str, words: list[str], act: str) -> None:
    """Be a rank of `palimpsest train`."""
    settle_in(folder, own_environment() | variables, log)
    from trainer.cli import run_command
    from trainer.run import loop

    whole, taken = loop.train_step, []

    def step(*arguments: Any, **options: Any) -> Any:
        taken.append(1)
        if act == "hang" and len(taken) == AT_STEP:
            time.sleep(9999)
        return whole(*arguments, **options)

    loop.train_step = step
    if act == "linger":
        linger()
    if act == "slow":
        from trainer.engine.policy import Policy

        nll = Policy.nll
        Policy.nll = lambda *words, **named: (time.sleep(0.2), nll(*words, **named))[1]  # type: ignore[method-assign]
    sys.exit(run_command(words))


def linger() -> None:
    """Stand still for longer than a step may: in the first one, as a compiler does, and in what is no step."""
    from trainer.evaluate.answers import Answering
    from trainer.run import loop, saver
    from trainer.run.evaluator import Evaluator

    first, after_those_of_the_base = 1, 2
    for place, name, at in (
        (loop, "train_step", first),
        (Evaluator, "evaluate", after_those_of_the_base),
        (Answering, "answer", after_those_of_the_base),
        (saver, "write_shards", first),
    ):
        calls, whole = itertools.count(1), getattr(place, name)

        def slow(
            *words: Any, calls: Iterator[int] = calls, whole: Any = whole, at: int = at, **named: Any
        ) -> Any:
            if next(calls) == at:
                time.sleep(1.5 * LIMIT_OF_STEP)
            return whole(*words, **named)

        setattr(place, name, slow)


class Run:
    """Ranks of a run, each a process of its own."""

    def __init__(self, workspace: str, folder: Path, acts: list[str], *words: str) -> None:
        self.run_dir = folder / "run"
        self.run_dir.mkdir()
        self._logs = [folder / f"rank-{rank}.log" for rank in range(len(acts))]
        line = ["train", "--config", f"{workspace}/config.yaml", f"run_dir={self.run_dir}", *words]
        line += ["log.every_steps=1", "evaluate.forgetting=false"]
        line += [] if "linger" in acts else ["evaluate.every_steps=0"]
        self.ranks: list[Process] = []
        with held_port() as port:
            for rank, act in enumerate(acts):
                variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(len(acts))}
                variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                log = str(self._logs[rank])
                process = STARTING.Process(target=be_rank, args=(variables, str(folder), log, line, act))
                with only(own_environment()):
                    process.start()
                self.ranks.append(process)
            wait_until(lambda: self.steps or self.codes != [None] * len(acts), "a step", self.said)

    @property
    def steps(self) -> list[int]:
        metrics = self.run_dir / "metrics.jsonl"
        return [row["step"] for row in read(metrics) if "loss" in row] if metrics.exists() else []

    @property
    def codes(self) -> list[int | None]:
        return [rank.exitcode for rank in self.ranks]

    def said(self) -> str:
        return "".join(log.read_text() for log in self._logs)

    def end(self) -> list[int | None]:
        """Wait until every rank has ended."""
        for rank in self.ranks:
            rank.join(LIMIT_S)
        return self.codes

    def stacks(self, rank: int) -> str:
        return (self.run_dir / "logs" / "attempt-1" / f"rank-{rank}.stacks").read_text()


@pytest.fixture
def train(workspace: str, tmp_path: Path) -> Iterator[Any]:
    runs: list[Run] = []

    def start(acts: list[str], *words: str) -> Run:
        runs.append(Run(workspace, tmp_path, acts, *words))
        return runs[-1]

    yield start
    for run in runs:
        for rank in run.ranks:
            rank.kill()
            rank.join()


def test_a_rank_that_hangs_is_named_with_its_line_and_all_end_with_a_code_that_requeues(train):
    run = train(["", "hang"], "train.max_steps=2000", *WATCH)
    assert run.end() == [75, 75], run.said()
    assert "[rank 1] Error: Rank 1 has stood still for " in run.said()
    assert f"in phase step of step {AT_STEP}, at test_watchdog.py:" in run.said()
    assert "in step" in run.stacks(1) and "train_step" in run.stacks(0), "each wrote where it was"
    assert run.steps[-1] == AT_STEP - 1


def test_a_rank_that_is_stopped_is_named_and_killed(train):
    run = train(["", ""], "train.max_steps=20000", *WATCH)
    wait_until(lambda: len(run.steps) > 4, "steps that are no warm-up", run.said)
    pid = run.ranks[1].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    first, stopped = run.end()
    # Its warden lets it go on before it ends it: it may hear of its failure first.
    assert first == 75 and stopped in (75, -signal.SIGKILL), run.said()
    assert "[rank 1] Error: Rank 1 has given no sign of life for " in run.said()
    assert "most recent call first" in run.stacks(1)


def test_a_slow_rank_is_named_within_fifty_steps_and_the_run_goes_on(train):
    words = ["train.max_steps=24", "train.global_batch_tokens=128", "checkpoint.enabled=false"]
    run = train(["", "slow"], *words)
    assert run.end() == [0, 0], run.said()
    events = [json.loads(line) for line in (run.run_dir / "ledger.jsonl").read_text().splitlines()]
    found = [event for event in events if event["event"] == "straggler"]
    assert [(event["rank"], event["is_slow"]) for event in found] == [(1, True)], "named once"
    assert found[0]["step"] <= 20 and found[0]["ratio"] > 1.3
    last = [row for row in read(run.run_dir / "metrics.jsonl") if "loss" in row][-1]
    assert last["slowest_rank"] == 1 and last["slowest_ratio"] > 1.3
    assert not list((run.run_dir / "logs" / "attempt-1").glob("*.stacks")), "nothing stood still"


@pytest.mark.slow
def test_a_first_step_an_evaluation_answers_and_a_save_that_take_longer_than_a_step_may_are_no_alarm(train):
    """On one rank, for which the other waits. An alarm: its phase is not begun, or has the limit of a step."""
    words = [
        "train.max_steps=6",
        "checkpoint.background=false",
        "checkpoint.every_steps=4",
        "checkpoint.keep_best=false",
    ]
    words += ["evaluate.every_steps=5", "evaluate.during.every_steps=5", "evaluate.during.max_share=1"]
    words += ["evaluate.during.samples.num=2", "evaluate.during.samples.max_new_tokens=3"]
    run = train(["", "linger"], *words, "cluster.watch.beat_s=0.2", f"cluster.watch.step_s={LIMIT_OF_STEP}")
    assert run.end() == [0, 0], run.said()
    assert run.steps == list(range(1, 7))
    assert not list((run.run_dir / "logs" / "attempt-1").glob("*.stacks")), run.said()
