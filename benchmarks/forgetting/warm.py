"""A process that has imported everything and forks a child for each command, so that a run starts at once.

    python benchmarks/forgetting/warm.py        # started by experiment.py, which talks to it by lines of JSON

In: {"id", "argv", "env", "log"}. Out: {"ready": why not, or null} first, then {"id", "code"} as children end. Its end
of input ends all children. What a start of Python with torch, DeepSpeed and transformers takes is paid once and not
by each of some hundred runs. A process that has begun to use a GPU cannot be forked: a first child tries, and where
it cannot, that is said and the experiment starts each run as a process of its own.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any

MODULES = (
    "torch",
    "transformers",
    "transformers.models.llama.modeling_llama",
    "trainer.cli",
    "trainer.command.rank",
    "trainer.run.training",
    "trainer.engine.initialize",
    "trainer.command.interpolate",
    "trainer.command.export",
    "trainer.command.prepare",
    "trainer.command.replay",
    "trainer.sample.generate",
)
POLL_S = 0.1


def main() -> None:
    """Serve until the end of input."""
    os.environ.setdefault(
        "PYTORCH_NVML_BASED_CUDA_CHECK", "1"
    )  # asks the driver nothing that a child needs anew
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    if not Path("/dev/nvidiactl").exists():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    missing = []
    for name in MODULES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            missing.append(f"{name}: {error}")
    if missing:
        print("not imported beforehand:", *missing, sep="\n  ", file=sys.stderr, flush=True)
    print(json.dumps({"ready": why_not()}), file=out, flush=True)
    serve(out)


def why_not() -> str | None:
    """Return why children cannot use this machine's GPU, or None; tried in a child."""
    pid = os.fork()
    if pid == 0:
        code = 0
        try:
            import torch

            if torch.cuda.is_available():
                torch.zeros(1, device="cuda").add_(1).item()
        except Exception as error:
            print(f"a forked child cannot use the GPU: {error}", file=sys.stderr, flush=True)
            code = 1
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return None if code == 0 else f"a forked child that used the GPU ended with {code}"


def serve(out: Any) -> None:
    """Fork for each line, tell of each end, and end what is left."""
    running: dict[int, str] = {}
    waiting = b""
    while True:
        ready, _, _ = select.select([0], [], [], POLL_S)
        if ready:
            read = os.read(0, 1 << 16)
            if not read:
                break
            *lines, waiting = (waiting + read).split(b"\n")
            for line in lines:
                asked = json.loads(line)
                if "kill" in asked:
                    for pid, name in running.items():
                        if name == asked["kill"]:
                            end(pid)
                else:
                    running[child(asked, out)] = asked["id"]
        while running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid in running:
                code = os.waitstatus_to_exitcode(status)
                print(json.dumps({"id": running.pop(pid), "code": code}), file=out, flush=True)
    for pid in running:
        end(pid)


def end(pid: int) -> None:
    """Kill a child and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def child(asked: dict[str, Any], out: Any) -> int:
    """Fork; the child runs a command of the trainer as `python -m trainer` would, in a session of its own."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        out.close()
        log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        null = os.open(os.devnull, os.O_RDONLY)
        for number, to in ((null, 0), (log, 1), (log, 2)):
            os.dup2(number, to)
        os.environ.update(asked["env"])
        sys.argv = ["palimpsest", *asked["argv"]]
        from trainer.cli import main as command

        command()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
