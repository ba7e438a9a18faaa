"""Measure what a save costs: steps that wait for the copy in host memory alone, and steps that wait for the disk.

    python benchmarks/saves.py --corpus FILE.txt --gpus 2 --shape SHAPE --out FILE [--layers N] [--set WORD ...]

Two runs of the case zero2_4096x2_none, the first with checkpoint.background, the second without it. Each is killed when
its first save is committed, so that the disk needs room for one. The rate of a plain copy from all GPUs into pinned
memory at once is measured beside them: what the stall would be if nothing but bytes counted. Medians of step times are
over steps that no save touches, and over those during which a save was being written.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
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
TRAIN = """
import trainer.checkpoint.space
from trainer.cli import main
trainer.checkpoint.space.bytes_free = lambda path: 1 << 60  # the second save, for which there must be room, never comes
main()
"""


def main() -> None:
    """Run what is asked for and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--shape", type=Path, default=HERE / "shapes" / "llama3_8b")
    parser.add_argument("--layers", type=int, help="of the shape; all where it is not given")
    parser.add_argument(
        "--steps", type=int, default=20, help="the step of the save; as many may go on beside it"
    )
    parser.add_argument(
        "--background",
        nargs="+",
        choices=("true", "false"),
        default=["true", "false"],
        help="beside the training",
    )
    parser.add_argument("--limit-s", type=int, default=280, help="wall clock limit of one run")
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
    for background in arguments.background:
        record["runs"].append(measure(background, arguments, work))
        arguments.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        print(json.dumps(record["runs"][-1]), flush=True)
    shutil.rmtree(work)


def measure(background: str, arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run until the first save is committed and return what it cost."""
    run_dir = work / f"background-{background}"
    shared = case_overrides("zero2_4096x2_none", arguments, work)
    words = [word for word in shared if not word.startswith(("checkpoint.enabled=", "train.max_steps="))]
    words += [f"checkpoint.every_steps={arguments.steps}", f"train.max_steps={1000 * arguments.steps}"]
    words += ["checkpoint.keep_last=1", "checkpoint.keep_best=false", f"checkpoint.background={background}"]
    words += [f"run_dir={run_dir}", "log.every_steps=1"]
    program = work / "train.py"
    program.write_text(TRAIN, encoding="utf-8")
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={arguments.gpus}"]
    log_path = work / f"background-{background}.log"
    with log_path.open("w", encoding="utf-8") as log:
        code = subprocess.run([sys.executable, "-m", "trainer", "prepare", *words], stdout=log, stderr=log)
        code.check_returncode()
        command = [sys.executable, *launch, str(program), "train", *words]
        job = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            saved = first_save(run_dir / "ledger.jsonl", job, arguments.limit_s)
        finally:
            end(job, run_dir)
    if saved is None:
        tail = log_path.read_text(encoding="utf-8", errors="replace")[-3000:]
        sys.exit(f"background={background}: no save, exit code {job.returncode}\n{tail}")
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    steps = {row["step"]: row["step_time_s"] for row in rows if "loss" in row and row["step"] > WARMUP_STEPS}
    during: list[float] = []
    written_s = saved["seconds"] - saved["stall_s"]
    for step in range(arguments.steps + 1, 2 * arguments.steps):  # the step after these waits for the save
        if step in steps and sum(during) < written_s:
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
        "step_time_s": statistics.median(steps[step] for step in steps if step < arguments.steps),
        "step_time_while_writing_s": statistics.median(during) if during else None,
        "steps_while_writing": len(during),
    }


def end(job: subprocess.Popen[bytes], run_dir: Path) -> None:
    """Kill a run with its ranks, which are in sessions of their own, and wait until none of them writes."""
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    while ranks := [
        int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if is_of(path, run_dir)
    ]:
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank, signal.SIGKILL)
        time.sleep(0.2)


def is_of(cmdline: Path, run_dir: Path) -> bool:
    """Tell whether a process, by its command line in /proc, was started with a run directory."""
    try:
        return f"run_dir={run_dir}".encode() in cmdline.read_bytes().split(b"\0")
    except OSError:
        return False


def first_save(ledger: Path, job: subprocess.Popen[bytes], limit_s: float) -> dict[str, Any] | None:
    """Wait for the first committed save and return its event; None when the run ends or the time is over before."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        lines = ledger.read_text(encoding="utf-8").splitlines(keepends=True) if ledger.exists() else []
        events: list[dict[str, Any]] = [json.loads(line) for line in lines if line.endswith("\n")]
        for event in events:
            if event["event"] == "saved":
                return event
        if job.poll() is not None:
            return None
        time.sleep(0.2)
    return None


if __name__ == "__main__":
    main()
