"""A run under kills that come as they like, for as long as asked, and how much of its time was not lost.

    python -m tests.dist.soak --minutes M [--every-s S] [--kind KIND] [--seed S] [--out FILE]

Runs of two ranks that save every few steps, one after the other. While one trains, a rank gets SIGKILL, or SIGTERM one
time in four, after a time that is drawn anew at every start: on average so many seconds, as a Poisson process has it.
The same command goes on until the run is finished; its last checkpoint must be, to the bit, that of a run that nobody
touched.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.dist.blows import Kill
from tests.dist.chaos import KINDS, Range
from tests.dist.session import make_inputs
from tests.helpers.ranks import RankFailure, Ranks
from trainer.metrics.effective import effective

STEPS, EVERY = 200, 10
MOST_STARTS = 200
"""Of one run, after which it does not come to its end."""
TERMS = 0.25
"""Share of ends that are asked for."""
BACKGROUND = True


@dataclass(frozen=True, slots=True)
class Soaked:
    """A run that was killed again and again, and is finished."""

    num_starts: int
    num_kills: int
    num_terms: int
    lost_steps: int
    productive_s: float
    wall_s: float
    problem: str | None

    @property
    def ettr(self) -> float:
        """Return the share of the time that went into steps that stayed."""
        return self.productive_s / self.wall_s if self.wall_s else 0.0


class Soak:
    """Runs, and what ends them."""

    def __init__(self, fire: Range, folder: Path, kind: str, every_s: float, seed: int) -> None:
        """Train the run that nobody touches."""
        self._fire, self._folder, self._kind, self._every_s = fire, folder, kind, every_s
        self._rng = random.Random(seed)
        self._whole = fire.whole(kind, BACKGROUND)

    def next_kill(self) -> Kill:
        """Return the next end: which rank, how, and when."""
        how = "term" if self._rng.random() < TERMS else "kill"
        after_ms = 1 + int(1000 * self._rng.expovariate(1 / self._every_s))
        return Kill(self._kind, BACKGROUND, self._rng.randrange(2), how, "ms", after_ms)

    def run(self, number: int) -> Soaked:
        """Start a run until it is finished, and compare it with the one that nobody touched."""
        run_dir, ends, problem = self._folder / f"run-{number}", Counter[str](), None
        for _ in range(MOST_STARTS):
            try:
                reason = self._fire.train(run_dir, self._kind, BACKGROUND, self.next_kill())
            except RankFailure as failure:
                # SIGTERM ends a rank that does not listen yet.
                if not any(f"died with {code}" in str(failure) for code in ("-9", "-15")):
                    problem = str(failure)[-3000:]
                    break
                ends["kill"] += 1
                continue
            ends["term"] += reason == "preempted"
            if reason == "finished":
                problem = self._fire.difference(run_dir, self._whole)
                break
        else:
            problem = f"not finished after {MOST_STARTS} starts"
        found = effective(run_dir)
        shutil.rmtree(run_dir, ignore_errors=True)
        return Soaked(
            found.num_starts,
            ends["kill"],
            ends["term"],
            found.lost_steps,
            round(found.productive_s, 3),
            round(found.wall_s, 3),
            problem,
        )


def main() -> int:
    """Soak, print a line a run, and write what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--every-s", type=float, default=5.0)
    parser.add_argument("--kind", choices=KINDS, default="full ZeRO-2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    runs: list[Soaked] = []
    with tempfile.TemporaryDirectory(prefix="palimpsest-soak-") as folder:
        workspace = f"{folder}/workspace"
        alone = Ranks(1, Path(folder) / "alone")
        alone.run(make_inputs, folder=workspace)
        alone.close()
        fire = Range(Path(folder), workspace, steps=STEPS, every=EVERY)
        soak = Soak(fire, Path(folder), options.kind, options.every_s, options.seed)
        began = time.monotonic()
        while not runs or (time.monotonic() - began < 60 * options.minutes and not runs[-1].problem):
            runs.append(soak.run(len(runs)))
            verdict = runs[-1].problem or "the same bits"
            print(f"{len(runs):4} {runs[-1]}: ETTR {runs[-1].ettr:.3f}, {verdict}", flush=True)
        seconds = time.monotonic() - began
        fire.pool.close()
    productive_s, wall_s = sum(run.productive_s for run in runs), sum(run.wall_s for run in runs)
    record = {
        "command": f"python -m tests.dist.soak --minutes {options.minutes:g} --seed {options.seed}",
        "minutes": round(seconds / 60, 1),
        "steps": STEPS,
        "steps_between_saves": EVERY,
        "mean_s_between_kills": options.every_s,
        "starts": sum(run.num_starts for run in runs),
        "kills": sum(run.num_kills for run in runs),
        "terms": sum(run.num_terms for run in runs),
        "lost_steps": sum(run.lost_steps for run in runs),
        "ettr": round(productive_s / wall_s, 4),
        "problems": [run.problem for run in runs if run.problem],
        "runs": [asdict(run) for run in runs],
    }
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(
        f"{len(runs)} runs of {STEPS} steps, {record['starts']} starts, {record['kills']} kills and {record['terms']} "
        f"SIGTERMs in {record['minutes']} min: ETTR {record['ettr']}, {len(record['problems'])} runs that differ from "
        "the one that nobody touched."
    )
    return int(bool(record["problems"]))


if __name__ == "__main__":
    sys.exit(main())
