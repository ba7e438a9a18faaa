"""Kills at any instant, and what comes of the run: benchmarks/results/chaos.json.

    python -m tests.dist.chaos [--kills N] [--seed S] [--jobs J] [--out FILE]

A run of two ranks that saves every step or two is ended again and again. A rank gets SIGKILL or SIGTERM at one of the
calls that sync, rename or remove, in the middle of a write, or at a random instant. Or it gets SIGSTOP: the others must
name it and end; where it is let go on soon after, nobody minds. Or the command, or its launcher, is killed: no rank may
train on. Each time the same run goes on. At the end every file of the last checkpoint must be that of a run that nobody
touched.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.dist.blows import LAUNCHING, Counts, Kill, counting, struck
from tests.dist.outside import Met, bereave, stand_still, start_again
from tests.dist.session import config_of, make_inputs
from tests.helpers.ranks import ROOT, RankFailure, Ranks
from trainer.checkpoint.layout import find_checkpoints, step_of
from trainer.checkpoint.manifest import read_manifest
from trainer.metrics.jsonl import read

RESULTS = ROOT / "benchmarks" / "results" / "chaos.json"
STEPS, EVERY = 6, 2
LINES = [
    "evaluate.forgetting=false",
    "data.max_validation_packs=2",
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
WAYS = (
    *(("kill", "call"), ("stop", "any"), ("kill", "write"), ("command", "ms"), ("kill", "ms")),
    *(("term", "ms"), ("pause", "any"), ("kill", "call"), ("launcher", "ms"), ("kill", "write")),
    *(("term", "call"), ("kill", "ms"), ("kill", "call"), ("kill", "write"), ("term", "ms")),
    *(("kill", "ms"), ("kill", "call"), ("term", "write"), ("kill", "write"), ("kill", "call")),
)
"""What is done and where, in turn, each to all kinds. One in twenty is a rank that stops for good, and two are a
command with a launcher of its own: these take half a minute, and the others seconds."""
MOST_MS = {"command": 800, "launcher": 800, "stop": 1000, "pause": 1000}
"""After its first sign of life such a run is over in about so long; any other after 1200."""
DEADLINE = 30
"""Starts after which a run has not gone on by itself."""


@dataclass(slots=True)
class Outcome:
    """What came of one."""

    kill: Kill
    was_hit: bool = False
    """False: the run was over before."""
    saved_step: int = 0
    """Of the newest checkpoint after it."""
    lost_steps: int = 0
    """Beyond the checkpoint that was gone on from, as far as the ledger knows."""
    problem: str | None = None


def train_under_fire(
    mesh: Any, workspace: str, run_dir: str, words: list[str], kill: dict[str, Any] | None
) -> dict[str, Any]:
    """Train, and meet what is planned for this rank; return how it ended."""
    from trainer.run import training

    with contextlib.ExitStack() as stack:
        if kill is not None and kill["rank"] == mesh.rank:
            stack.enter_context(struck(kill["how"], kill["where"], kill["at"]))
        return {"reason": training.run_training(config_of(workspace, run_dir, *LINES, *words)).value}


def train_and_count(mesh: Any, workspace: str, run_dir: str, words: list[str]) -> dict[str, Any]:
    """Train, and return how it ended and what was counted."""
    from trainer.run import training

    counts = Counts()
    with counting(counts):
        reason = training.run_training(config_of(workspace, run_dir, *LINES, *words)).value
    return {"reason": reason, "made": counts.made}


class Range:
    """Two ranks, what a run of each kind comes to when nobody touches it, and the calls that it makes."""

    def __init__(
        self, folder: Path, workspace: str, pool: Ranks | None = None, steps: int = STEPS, every: int = EVERY
    ) -> None:
        self._folder, self._workspace, self._steps = folder, workspace, steps
        self._lines = [f"train.max_steps={steps}", f"checkpoint.every_steps={every}"]
        self.pool = pool or Ranks(2, folder / "ranks")
        self._whole: dict[str, dict[str, str]] = {}
        self.made: dict[tuple[str, bool], list[dict[str, int]]] = {}
        """By kind and whether it saves in the background: the calls and writes of each rank."""

    def whole(self, kind: str, background: bool) -> dict[str, str]:
        """Return the digests of the last checkpoint of a run that nobody touched."""
        key = (kind, background)
        if key not in self.made:
            run_dir = self._folder / f"whole-{len(self.made)}"
            answers = self.pool.run(
                train_and_count,
                workspace=self._workspace,
                run_dir=str(run_dir),
                words=self.words(kind, background),
            )
            assert answers[0]["reason"] == "finished"
            self.made[key] = [answer["made"] for answer in answers]
            found = digests(run_dir, self._steps)
            assert self._whole.setdefault(kind, found) == found, "saves beside the training differ"
            shutil.rmtree(run_dir)
        return self._whole[kind]

    def words(self, kind: str, background: bool) -> list[str]:
        """Return what a run of a kind overrides."""
        return [*KINDS[kind], *self._lines, f"checkpoint.background={background}"]

    def suffer(self, kill: Kill, number: int) -> Outcome:
        """Let a run meet its end and go on until it is finished, and compare."""
        return self.suffer_all([kill], number)[0]

    def suffer_all(self, kills: Sequence[Kill], number: int) -> list[Outcome]:
        """Let a run meet an end at every start, then go on until it is finished, and compare.

        Returns what came of each; what is seen at the end is with the last.
        """
        whole = self.whole(kills[0].kind, kills[0].background)
        run_dir, outcomes, is_finished = self._folder / f"run-{number}", list[Outcome](), False
        for kill in kills:
            met = self.meet(run_dir, kill)
            is_finished = met.is_finished
            saved = step_of(found[0]) if (found := find_checkpoints(run_dir)) else 0
            outcomes.append(Outcome(kill, met.was_hit, saved, problem=met.problem))
            if is_finished or met.problem is not None:
                break
        last = outcomes[-1]
        if not is_finished and last.problem is None:
            last.problem = self.go_on(run_dir, last.kill)
        if last.problem is None:
            last.lost_steps = lost_steps(run_dir)
            last.problem = self.difference(run_dir, whole)
            shutil.rmtree(run_dir)
        return outcomes

    def meet(self, run_dir: Path, kill: Kill) -> Met:
        """Start a run and let it meet what is planned."""
        command, logs = self.command(run_dir, kill), self._folder / f"logs-{run_dir.name}"
        if kill.how in LAUNCHING:
            return bereave(kill, command, run_dir, logs / "command.log")
        if kill.how in ("stop", "pause"):
            return stand_still(kill, command, logs)
        try:
            reason = self.train(run_dir, kill.kind, kill.background, kill)
        except RankFailure as failure:
            # A signal that comes before the run listens ends it, as it ends a command that has just begun.
            if ("died with -15" if kill.how == "term" else "died with -9") in str(failure):
                return Met(True)
            return Met(True, problem=shortened(failure))
        return Met(reason == "preempted", reason == "finished")

    def command(self, run_dir: Path, kill: Kill) -> list[str]:
        """Return the words with which a person starts such a run."""
        lines = [*LINES, *self.words(kill.kind, kill.background)]
        return ["train", "--config", f"{self._workspace}/config.yaml", f"run_dir={run_dir}", *lines]

    def go_on(self, run_dir: Path, kill: Kill) -> str | None:
        """Start a run again until it is finished; return what kept it from that."""
        if kill.how in (
            *LAUNCHING,
            "stop",
        ):  # it was begun by a command, which has filled in what was left open
            return start_again(self.command(run_dir, kill), self._folder / f"logs-{run_dir.name}" / "again")
        for _ in range(DEADLINE):
            try:
                if self.train(run_dir, kill.kind, kill.background) == "finished":
                    return None
            except RankFailure as failure:
                return shortened(failure)
        return f"not finished after {DEADLINE} starts"

    def difference(self, run_dir: Path, whole: dict[str, str]) -> str | None:
        """Return what is not as in the run that nobody touched."""
        if digests(run_dir, self._steps) != whole:
            return "the last checkpoint differs from that of a run that nobody touched"
        left = [path.name for path in (run_dir / "checkpoints").iterdir() if path.name.startswith(".")]
        return f"left behind: {left}" if left else None

    def train(self, run_dir: Path, kind: str, background: bool, kill: Kill | None = None) -> str:
        """Start a run, or go on with it, and meet what is planned; return how it ended."""
        answers = self.pool.run(
            train_under_fire,
            workspace=self._workspace,
            run_dir=str(run_dir),
            words=self.words(kind, background),
            kill=None if kill is None else asdict(kill),
        )
        return str(answers[0]["reason"])


def shortened(failure: RankFailure) -> str:
    """Return beginning and end of what ranks said."""
    return f"{str(failure)[:1000]} ... {str(failure)[-2000:]}"


def digests(run_dir: Path, steps: int = STEPS) -> dict[str, str]:
    """Return the digest of every file of the last checkpoint, but for what tells of attempts."""
    newest = find_checkpoints(run_dir)[0]
    assert step_of(newest) == steps
    files = read_manifest(newest).files
    return {name: digest for name, (_, digest) in files.items() if name != "state.json"}


def lost_steps(run_dir: Path) -> int:
    """Return how far a start had come at most beyond what was gone on from, as far as metrics were written."""
    lost = [0]
    for path in run_dir.glob("abandoned-*/metrics.jsonl"):
        lost.append(len({row["step"] for row in read(path) if "loss" in row}))
    return max(lost)


def planned(indices: Iterable[int], seed: int, fire: Range) -> Iterator[Kill]:
    """Yield kills: WAYS in turn, each to all kinds, at random ranks, calls, writes and instants."""
    kinds = [(kind, background) for kind in KINDS for background in (True, False)]
    for index in indices:
        rng = random.Random(f"{seed} {index}")
        kind, background = kinds[index % len(kinds)]
        fire.whole(kind, background)
        how, where = WAYS[index // len(kinds) % len(WAYS)]
        rank = rng.randrange(2)
        where = rng.choice(("call", "write", "ms")) if where == "any" else where
        most = MOST_MS.get(how, 1200) if where == "ms" else fire.made[kind, background][rank][where]
        yield Kill(kind, background, rank, how, where, rng.randrange(1, most + 1))


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
            said = outcomes[-1].problem or ("went on" if outcomes[-1].was_hit else "was over before")
            print(f"{index + 1:4} {kill}: {said}", flush=True)
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


def verdict(outcome: dict[str, Any]) -> str:
    """Return what came of a kill, in a word or two."""
    if outcome["problem"]:
        return "problem"
    return "went on, same bits" if outcome["was_hit"] else "over before"


def way(kill: Kill) -> str:
    """Return what was done, to whom, and where, in words."""
    what = {"kill": "SIGKILL", "term": "SIGTERM", "stop": "SIGSTOP", "pause": "SIGSTOP and SIGCONT"}
    whom = f"SIGKILL of the {kill.how}" if kill.how in LAUNCHING else f"{what[kill.how]} of a rank"
    return f"{whom} at {dict(call='a call', write='a write', ms='an instant')[kill.where]}"


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
    counts = collections.Counter(map(verdict, outcomes))
    by_kind: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for one in outcomes:
        by_kind[way(Kill(**one["kill"]))][verdict(one)] += 1
    record = {
        "command": f"python -m tests.dist.chaos --kills {options.kills} --seed {options.seed} --jobs {options.jobs}",
        "seconds": round(time.monotonic() - began),
        "counts": dict(counts),
        "by_kind": {kind: dict(found) for kind, found in sorted(by_kind.items())},
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
