"""What the quickstart shows at its end: held-out loss, speed, and the same sentence continued twice.

Reads only what a run directory holds by contract.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median

from trainer.errors import Exit
from trainer.metrics.jsonl import read
from trainer.runtime.visible import visible

PROMPT = 'In Python, the "with" statement is used to'
NEW_TOKENS = 40
MEASURED = "forgetting.json"


def show_result(run_dir: Path, source: str, export: Path) -> int:
    """Print the result of the run; return the exit code, not 0 unless the held-out loss went down.

    Args:
        source: What the run began with: a folder or a name that transformers loads.
    """
    if not (run_dir / MEASURED).is_file():
        print(
            f"{in_short(run_dir)} must hold {MEASURED}, which training writes at its end, but does not. Leave out "
            "evaluate.forgetting=false, and start the same command with another run_dir.",
            file=sys.stderr,
        )
        return Exit.died
    sets = json.loads((run_dir / MEASURED).read_text(encoding="utf-8"))["sets"]
    print("  held-out loss, nats per token (e^loss is the perplexity)")
    for one in sets:
        print(
            f"    {one['name']:<17} {one['base_nats']:.4f} -> {one['tuned_nats']:.4f} ({one['change_nats']:+.4f})"
            f"  {one['role']}"
        )
    speeds = [
        record["tokens_per_s"] for record in read(run_dir / "metrics.jsonl") if "tokens_per_s" in record
    ]
    if speeds:
        print(f"  speed            {median(speeds):,.0f} tokens/s (median of {len(speeds)} steps)")
    print(f"  exported model   {in_short(export)}")
    print(f"  report           {in_short(run_dir / 'report.html')}")
    print(flush=True)
    compare(source, export)
    if not all(one["change_nats"] < 0 for one in sets if one["role"] == "target"):
        print("\nThe held-out loss of the target did not go down: something is wrong.", file=sys.stderr)
        return Exit.died
    return Exit.done


def compare(source: str, tuned_dir: Path) -> None:
    """Continue one sentence with the model before and after, greedily."""
    from trainer.model.embedded import continue_text

    print(f"  {PROMPT} ...")
    for label, folder in (("before", source), ("after", str(tuned_dir))):
        text = visible(" ".join(continue_text(folder, PROMPT, NEW_TOKENS).split()))
        print(f"    {label:<7} {text}", flush=True)


def in_short(path: Path) -> Path:
    """Return a path as a person here would type it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
