"""Odd data files and overrides, damaged manifests and ledgers, by seed: benchmarks/results/fuzz.json.

    python -m tests.dist.fuzz [--only KIND] [--times 1] [--seed 0] [--out FILE]

Each must be taken for what it is or be refused in one sentence; a traceback, and what is taken for something else, is a
problem with its seed. The tests of these kinds try a few seeds of their own.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import logging
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

from tests.helpers.ranks import ROOT
from tests.unit.checkpoint.test_manifest import GOOD, damaged, told
from tests.unit.data.test_odd_inputs import outcome_of, outcome_of_any, outcome_of_overrides
from tests.unit.metrics.test_jsonl import outcome_of_ledger
from trainer.checkpoint.manifest import manifest_text

RESULTS = ROOT / "benchmarks" / "results" / "fuzz.json"
FIRST_SEED = 100_000
"""Beyond those of the tests."""


def outcome_of_manifest(seed: int, folder: Path) -> str:
    """Read a damaged manifest; return what came of it, or fail."""
    folder.mkdir(exist_ok=True)
    read = told(folder, damaged(manifest_text(GOOD).encode(), random.Random(seed)))
    assert read in (None, GOOD), f"seed {seed}: {read}"
    return "refused" if read is None else "taken"


def any_override(seed: int, folder: Path) -> str:
    """Compose odd overrides of any keys; return what came of them, or fail."""
    return outcome_of_any(seed)


KINDS: dict[str, tuple[int, Callable[[int, Path], str]]] = {
    "data files": (6_000, outcome_of),
    "overrides of a source": (1_000, outcome_of_overrides),
    "overrides of any keys": (400, any_override),
    "manifests": (20_000, outcome_of_manifest),
    "ledgers": (2_000, outcome_of_ledger),
}
"""How many are tried, and what becomes of a seed in a folder."""


def tried(kind: str, count: int, first: int) -> dict[str, Any]:
    """Return how many of a kind came to what, and every problem with its seed."""
    _, outcome = KINDS[kind]
    outcomes: Counter[str] = Counter()
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place, chdir(place):
        for seed in range(first, first + count):
            folder = Path(place) / str(seed)
            if outcome is outcome_of_overrides:
                folder.mkdir()
            try:
                found = outcome(seed, folder)
                outcomes["refused" if found in ("refused", "ConfigError", "DataError") else "taken"] += 1
            except Exception:
                problems.append(f"{seed}: {traceback.format_exc()[-1500:]}")
            shutil.rmtree(folder, ignore_errors=True)
    return {"tried": count, "outcomes": dict(sorted(outcomes.items())), "problems": problems}


def all_tried(only_like: str, times: float, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what came of every kind."""
    for kind, (count, _) in KINDS.items():
        if fnmatch.fnmatch(kind, only_like):
            yield kind, tried(kind, max(round(count * times), 1), FIRST_SEED + seed)


def main() -> int:
    """Try all kinds, print what came of them, and write the record; of those that were not tried it keeps its line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="*")
    parser.add_argument("--times", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    kinds = json.loads(options.out.read_text())["kinds"] if options.out.exists() else {}
    num_wrong = 0
    for kind, found in all_tried(options.only, options.times, options.seed):
        kinds[kind] = found
        num_wrong += len(found["problems"])
        print(
            f"{kind}: {found['tried']:,} tried, {found['outcomes']}", *found["problems"], sep="\n", flush=True
        )
        record = {
            "command": "python -m tests.dist.fuzz",
            "kinds": {name: kinds[name] for name in sorted(kinds)},
        }
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    return int(num_wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
