"""How much work a command is, counted: the number of its function calls is the same on a slow or busy machine."""

from __future__ import annotations

import cProfile
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

MANY_CALLS = 3_500_000
"""Of a command that answers at once: 1.8 to 3.1 million are usual, a second on the processor, most of it imports."""

CODE = """
import sys
from tests.helpers.calls import num_calls
def run():
    from trainer.cli import run_command
    assert run_command(sys.argv[1:]) == 0
number = num_calls(run)
heavy = sorted({"torch", "transformers", "deepspeed", "peft", "datasets", "wandb"} & set(sys.modules))
assert not heavy, f"it has loaded {heavy}"
print("calls:", number, file=sys.stderr)
"""


def num_calls(work: Callable[[], object]) -> int:
    """Return how many functions a piece of work calls, its imports included."""
    profile = cProfile.Profile()
    profile.runcall(work)
    return sum(entry.callcount for entry in profile.getstats())


def calls_without_torch(words: list[str], cwd: Path) -> int:
    """Return the calls of a command of palimpsest that must succeed, and load neither torch nor its like."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n{CODE}"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return int(done.stderr.rpartition("calls: ")[2])
