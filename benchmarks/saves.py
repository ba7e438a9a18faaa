"""Measure what a save costs: steps that wait for the copy in host memory alone, and steps that wait for the disk.

    python benchmarks/saves.py --corpus FILE.txt --gpus 2 --shape SHAPE --out FILE [--layers N] [--set WORD ...]

Two runs of the case zero2_4096x2_none with a save in their middle, the first with checkpoint.background, the second
without it. The rate of a plain copy from all GPUs into pinned memory at once is measured beside them: what the stall
would be if nothing but bytes counted. Medians of step times are over steps that no save touches, and over those during
which a save was being written.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from run import HERE, WARMUP_STEPS, case_overrides, environment

COPY = """
import sys, time, torch
size, count = 2 << 30, torch.cuda.device_count()
pairs = [(torch.empty(size, dtype=torch.uint8, device=f"cuda:{i}"), torch.empty(size, dtype=torch.uint8).pin_memory())
         for i in range(count)]
def copy():
    begun = time.perf_counter()
    for device, host in pairs:
        host.copy_(device, non_blocking=True)
    for i in range(count):
        torch.cuda.synchronize(i)
    return size / (time.perf_counter() - begun) / 1e9
copy()
print(sorted(copy() for _ in range(5))[2])
"""


def main() -> None:
    """Run both and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--shape", type=Path, default=HERE / "shapes" / "llama3_8b")
    parser.add_argument("--layers", type=int, help="of the shape; all where it is not given")
    parser.add_argument("--steps", type=int, default=40, help="a save is made in the middle and at the end")
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="palimpsest-saves-"))
    if arguments.layers:
        shape = json.loads((arguments.shape / "config.json").read_text(encoding="utf-8"))
        arguments.shape = work / f"{arguments.shape.name}_{arguments.layers}_layers"
        arguments.shape.mkdir()
        (arguments.shape / "config.json").write_text(
            json.dumps(shape | {"num_hidden_layers": arguments.layers}), encoding="utf-8"
        )
    copied = subprocess.run([sys.executable, "-c", COPY], capture_output=True, text=True, check=True)
    record: dict[str, Any] = {
        "environment": environment(arguments),
        "pinned_copy_gb_per_s_a_gpu": round(float(copied.stdout), 1),
        "runs": [],
    }
    for background in ("true", "false"):
        record["runs"].append(measure(background, arguments, work))
        arguments.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        print(json.dumps(record["runs"][-1]), flush=True)
    shutil.rmtree(work)


def measure(background: str, arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run once and return what its save cost."""
    run_dir = work / f"background-{background}"
    middle = arguments.steps // 2
    shared = case_overrides("zero2_4096x2_none", arguments, work)
    words = [word for word in shared if not word.startswith("checkpoint.enabled=")]
    words += [f"checkpoint.every_steps={middle}", "checkpoint.keep_last=1", "checkpoint.keep_best=false"]
    words += [
        f"checkpoint.background={background}",
        f"run_dir={run_dir}",
        "log.every_steps=1",
    ]
    with (work / f"background-{background}.log").open("w", encoding="utf-8") as log:
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={arguments.gpus}"]
        for command in (["-m", "trainer", "prepare"], [*launch, "-m", "trainer", "train"]):
            code = subprocess.run([sys.executable, *command, *words], stdout=log, stderr=log).returncode
            if code:
                tail = Path(log.name).read_text(encoding="utf-8", errors="replace")[-3000:]
                sys.exit(f"background={background}: exit code {code}\n{tail}")
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = {row["step"]: row["step_time_s"] for row in rows if "loss" in row and row["step"] > WARMUP_STEPS}
    events = [
        json.loads(line) for line in (run_dir / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    saved = next(event for event in events if event["event"] == "saved" and event["step"] == middle)
    during, written_s = [], saved["seconds"] - saved["stall_s"]
    for step in range(middle + 1, arguments.steps):
        if sum(during) < written_s:
            during.append(steps[step])
    num_bytes = sum(
        file.stat().st_size for file in (run_dir / "checkpoints").glob("*/shards/*") if file.is_file()
    )
    shutil.rmtree(run_dir)
    return {
        "background": background == "true",
        "saved_bytes": num_bytes,
        "stall_s": saved["stall_s"],
        "seconds": saved["seconds"],
        "stall_gb_per_s_a_rank": round(num_bytes / arguments.gpus / saved["stall_s"] / 1e9, 2),
        "step_time_s": statistics.median(steps[step] for step in steps if step < middle),
        "step_time_while_writing_s": statistics.median(during) if during else None,
        "steps_while_writing": len(during),
    }


if __name__ == "__main__":
    main()
