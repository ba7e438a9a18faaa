"""What the quickstart shows at its end: held-out loss, speed, and the same sentence continued twice.

Reads only what a run directory holds by contract. Started by launch/quickstart.sh.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median

from trainer.errors import Exit
from trainer.metrics.jsonl import read

PROMPT = 'In Python, the "with" statement is used to'
NEW_TOKENS = 40
MEASURED = "forgetting.json"


def is_trained(run_dir: Path) -> bool:
    """Tell whether the run reached its last step and saved it."""
    from omegaconf import OmegaConf

    if not (run_dir / "config.yaml").is_file():
        return False
    max_steps = OmegaConf.load(run_dir / "config.yaml").train.max_steps
    last = run_dir / "checkpoints" / f"step-{max_steps:08d}" / "manifest.json"
    return last.is_file() and (run_dir / MEASURED).is_file()


def show(run_dir: Path, base_dir: Path) -> int:
    """Print the result of the run; return the exit code, not 0 unless the held-out loss went down."""
    records = read(run_dir / "metrics.jsonl")
    if not (run_dir / MEASURED).is_file():
        print(f"{run_dir} holds no {MEASURED}; the training did not end.")
        return Exit.died
    sets = json.loads((run_dir / MEASURED).read_text(encoding="utf-8"))["sets"]
    print("  held-out loss, nats per token")
    for one in sets:
        print(
            f"    {one['name']:<17} {one['base_nats']:.4f} -> {one['tuned_nats']:.4f} ({one['change_nats']:+.4f})"
            f"  {one['role']}"
        )
    speeds = [record["tokens_per_s"] for record in records if "tokens_per_s" in record]
    if speeds:
        print(f"  speed            {median(speeds):,.0f} tokens/s (median of {len(speeds)} steps)")
    print(f"  exported model   {run_dir / 'export'}")
    print(f"  report           {run_dir / 'report.html'}")
    print()
    compare(base_dir, run_dir / "export")
    if not all(one["change_nats"] < 0 for one in sets if one["role"] == "target"):
        print("\nThe held-out loss of the target did not go down: something is wrong.", file=sys.stderr)
        return Exit.died
    return Exit.done


def compare(base_dir: Path, tuned_dir: Path) -> None:
    """Continue one sentence with the model before and after, greedily."""
    from trainer.model.embedded import continue_text

    print(f"  {PROMPT} ...")
    for label, folder in (("before", base_dir), ("after", tuned_dir)):
        text = " ".join(continue_text(folder, PROMPT, NEW_TOKENS).split())
        print(f"    {label:<7} {text}")


def main() -> int:
    """Run `is-trained RUN_DIR` (an exit code) or `show RUN_DIR BASE_DIR`."""
    match sys.argv[1:]:
        case ["is-trained", run_dir]:
            return Exit.done if is_trained(Path(run_dir)) else Exit.died
        case ["show", run_dir, base_dir]:
            return show(Path(run_dir), Path(base_dir))
    print("usage: python -m trainer.launch.quickstart is-trained RUN_DIR | show RUN_DIR BASE_DIR")
    return Exit.mendable


if __name__ == "__main__":
    sys.exit(main())
