"""Kills at any instant, and what comes of the run: benchmarks/results/chaos.json.

    python -m tests.dist.chaos [--kills N] [--seed S] [--jobs J] [--out FILE]

A run of two ranks that saves every step or two is ended again and again: one rank gets SIGKILL at one of the calls that
write, sync, rename or remove while it saves, or at a random instant, or SIGTERM. Each time the same command goes on. At
the end every file of the last checkpoint must be that of a run that nobody touched.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.dist.session import config_of, make_inputs
from tests.helpers.ranks import ROOT, RankFailure, Ranks
from trainer.checkpoint.layout import find_checkpoints, step_of
from trainer.checkpoint.manifest import read_manifest

RESULTS = ROOT / "benchmarks" / "results" / "chaos.json"
STEPS, EVERY = 6, 2
LINES = [
    "evaluate.forgetting=false",
    "data.sources.text.role=replay",
    "replay.ratio=0.3",
]
KINDS = {
    f"{what} ZeRO-{stage}": [f"zero.stage={stage}", *words]
    for stage in (1, 2, 3)
    for what, words in {
        "full": ["zero.dtype=bf16"],
        "LoRA": ["zero.dtype=fp32", "tune.method=lora", "tune.r=4"],
    }.items()
}
CALLS = ("fsync", "rename", "replace", "unlink", "mkdir", "rmdir")
"""Of `os`, all of which a save makes; what is written before a sync is on disk or not, as it happens."""
EVERY_RANK = -1
DEADLINE = 30
"""Starts after which a run has not gone on by itself."""


@dataclass(frozen=True, slots=True)
class Kill:
    """One end that somebody else makes of a rank."""

    kind: str
    background: bool
    rank: int
    how: str
    """`call`: SIGKILL at the n-th call of CALLS. `kill`, `term`: the signal n milliseconds after the run began."""
    at: int


@dataclass(slots=True)
class Outcome:
    """What came of one."""

    kill: Kill
    was_hit: bool = False
    """False: the run was over before."""
    lost_steps: int = 0
    """Beyond the checkpoint that was gone on from, as far as the ledger knows."""
    problem: str | None = None


def train_under_fire(
    mesh: Any, workspace: str, run_dir: str, words: list[str], kill: dict[str, Any] | None
) -> dict[str, Any]:
    """Train, and meet what is planned for this rank; return how it ended, and the calls that were counted."""
    from trainer.run import training

    calls = [0]
    with contextlib.ExitStack() as stack:
        if kill is not None and kill["rank"] in (mesh.rank, EVERY_RANK):
            if kill["how"] == "call":
                stack.enter_context(counted(calls, kill["at"]))
            else:
                name = {"kill": signal.SIGKILL, "term": signal.SIGTERM}[kill["how"]]
                timer = threading.Timer(kill["at"] / 1000, os.kill, (os.getpid(), name))
                timer.daemon = True
                timer.start()
                stack.callback(timer.cancel)
        reason = training.run_training(config_of(workspace, run_dir, *LINES, *words)).value
    return {"reason": reason, "calls": calls[0]}


@contextlib.contextmanager
def counted(calls: list[int], at: int) -> Iterator[None]:
    """Count the calls that change a disk, and end this process at one of them, before it is made."""
    whole = {name: getattr(os, name) for name in CALLS}

    def watched(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return whole[name](*arguments, **options)

        return call

    for name in CALLS:
        setattr(os, name, watched(name))
    try:
        yield
    finally:
        for name, function in whole.items():
            setattr(os, name, function)


class Range:
    """Two ranks, what a run of each kind comes to when nobody touches it, and the calls that it makes."""

    def __init__(
        self, folder: Path, workspace: str, pool: Ranks | None = None, steps: int = STEPS, every: int = EVERY
    ) -> None:
        self._folder, self._workspace, self._steps = folder, workspace, steps
        self._lines = [f"train.max_steps={steps}", f"checkpoint.every_steps={every}"]
        self.pool = pool or Ranks(2, folder / "ranks")
        self._whole: dict[str, dict[str, str]] = {}
        self.num_calls: dict[tuple[str, bool], list[int]] = {}
        """By kind and whether it saves in the background: the calls of each rank."""

    def whole(self, kind: str, background: bool) -> dict[str, str]:
        """Return the digests of the last checkpoint of a run that nobody touched."""
        key = (kind, background)
        if key not in self.num_calls:
            run_dir = self._folder / f"whole-{len(self.num_calls)}"
            nobody = asdict(Kill(kind, background, EVERY_RANK, "call", -1))
            told = self.train(run_dir, kind, background, nobody)
            assert told["reason"] == "finished"
            self.num_calls[key] = told["calls"]
            found = digests(run_dir, self._steps)
            assert self._whole.setdefault(kind, found) == found, "saves beside the training differ"
            shutil.rmtree(run_dir)
        return self._whole[kind]

    def suffer(self, kill: Kill, number: int) -> Outcome:
        """Let a run meet its end and go on until it is finished, and compare."""
        whole = self.whole(kill.kind, kill.background)
        run_dir, outcome = self._folder / f"run-{number}", Outcome(kill)
        planned: dict[str, Any] | None = asdict(kill)
        for _ in range(DEADLINE):
            try:
                told = self.train(run_dir, kill.kind, kill.background, planned)
            except RankFailure as failure:
                # A signal that comes before the run listens ends it, as it ends a command that has just begun.
                ended = "died with -15" if kill.how == "term" else "died with -9"
                if planned is None or ended not in str(failure):
                    outcome.problem = str(failure)[:1000] + " ... " + str(failure)[-2000:]
                    return outcome
                outcome.was_hit, planned = True, None
                continue
            outcome.was_hit = outcome.was_hit or told["reason"] == "preempted"
            planned = None
            if told["reason"] == "finished":
                break
        else:
            outcome.problem = f"not finished after {DEADLINE} starts"
            return outcome
        outcome.lost_steps = lost_steps(run_dir)
        outcome.problem = self.difference(run_dir, whole)
        shutil.rmtree(run_dir)
        return outcome

    def difference(self, run_dir: Path, whole: dict[str, str]) -> str | None:
        """Return what is not as in the run that nobody touched."""
        if digests(run_dir, self._steps) != whole:
            return "the last checkpoint differs from that of a run that nobody touched"
        left = [path.name for path in (run_dir / "checkpoints").iterdir() if path.name.startswith(".")]
        return f"left behind: {left}" if left else None

    def train(
        self, run_dir: Path, kind: str, background: bool, kill: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Start a run, or go on with it, and meet what is planned; return how it ended."""
        words = [*KINDS[kind], *self._lines, f"checkpoint.background={background}"]
        answers = self.pool.run(
            train_under_fire, workspace=self._workspace, run_dir=str(run_dir), words=words, kill=kill
        )
        return {"reason": answers[0]["reason"], "calls": [answer["calls"] for answer in answers]}


def digests(run_dir: Path, steps: int = STEPS) -> dict[str, str]:
    """Return the digest of every file of the last checkpoint, but for what tells of attempts."""
    newest = find_checkpoints(run_dir)[0]
    assert step_of(newest) == steps
    files = read_manifest(newest).files
    return {name: digest for name, (_, digest) in files.items() if name != "state.json"}


def lost_steps(run_dir: Path) -> int:
    """Return how far the run had come beyond what it went on from, as far as metrics were written."""
    aside = [*run_dir.glob("abandoned-*/metrics.jsonl")]
    rows = [json.loads(line) for path in aside for line in path.read_text().splitlines()]
    return len({row["step"] for row in rows if "loss" in row})


def planned(indices: Iterable[int], seed: int, fire: Range) -> Iterator[Kill]:
    """Yield kills: half at calls in turn, over all that a run makes, the others at random instants."""
    kinds = [(kind, background) for kind in KINDS for background in (True, False)]
    for index in indices:
        rng = random.Random(f"{seed} {index}")
        kind, background = kinds[index % len(kinds)]
        fire.whole(kind, background)
        how = ("call", "kill", "call", "term")[index // len(kinds) % 4]
        rank = rng.randrange(2)
        most = fire.num_calls[kind, background][rank] if how == "call" else 1200
        yield Kill(kind, background, rank, how, rng.randrange(1, most + 1))


def attack(indices: range, seed: int) -> list[dict[str, Any]]:
    """Make some of the kills, print a line each, and return what came of them."""
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="palimpsest-chaos-") as folder:
        workspace = f"{folder}/workspace"
        alone = Ranks(1, Path(folder) / "alone")
        alone.run(make_inputs, folder=workspace)
        alone.close()
        fire = Range(Path(folder), workspace)
        for index, kill in zip(indices, planned(indices, seed, fire), strict=True):
            outcomes.append(fire.suffer(kill, index))
            verdict = outcomes[-1].problem or ("went on" if outcomes[-1].was_hit else "was over before")
            print(f"{index + 1:4} {kill}: {verdict}", flush=True)
        fire.pool.close()
    return [asdict(one) for one in outcomes]


def attack_side_by_side(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Share the kills between processes that do as this one does."""
    with tempfile.TemporaryDirectory(prefix="palimpsest-chaos-") as folder:
        files = [Path(folder) / f"{job}.json" for job in range(options.jobs)]
        words = ["--kills", str(options.kills), "--seed", str(options.seed), "--jobs", str(options.jobs)]
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.dist.chaos", *words, "--job", str(job), "--out", str(file)]
            )
            for job, file in enumerate(files)
        ]
        codes = [one.wait() for one in started]
        if 2 in codes or not all(file.exists() for file in files):
            sys.exit(f"a job ended without its results: {codes}")
        found = [json.loads(file.read_text(encoding="utf-8"))["kills"] for file in files]
    return [one for kills in found for one in kills]


def main() -> int:
    """Make all kills, print a line each, and write what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--jobs", type=int, default=1, help="pairs of ranks side by side; a core for each rank"
    )
    parser.add_argument("--job", type=int, help="make the share of this one of them alone")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    began = time.monotonic()
    if options.jobs > 1 and options.job is None:
        outcomes = attack_side_by_side(options)
    else:
        outcomes = attack(range(options.job or 0, options.kills, options.jobs), options.seed)
    counts = collections.Counter(
        "problem" if one["problem"] else "went on, same bits" if one["was_hit"] else "over before"
        for one in outcomes
    )
    record = {
        "command": " ".join(["python -m tests.dist.chaos", *sys.argv[1:]]),
        "seconds": round(time.monotonic() - began),
        "counts": dict(counts),
        "most_lost_steps": max(one["lost_steps"] for one in outcomes),
        "steps_between_saves": EVERY,
        "kills": outcomes,
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(
        f"{dict(counts)}, most steps lost {record['most_lost_steps']}, in {record['seconds']} s: {options.out}"
    )
    return int(counts["problem"] > 0)


if __name__ == "__main__":
    sys.exit(main())
