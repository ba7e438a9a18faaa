"""Make what the ranks of a job must find before they start: the model's folder, token stores, benchmark data.

One process on the first node of a job; started by the batch script as `python -m trainer.launch.inputs CONFIG`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from trainer.config.store import load_config
from trainer.errors import Exit, TrainerError


def make_inputs(config_file: Path) -> None:
    """Make what is missing, and check what the run would draw."""
    from trainer.command.before_ranks import check_benchmarks, check_stores
    from trainer.command.prepare import ensure_inputs

    config = load_config(config_file)
    check_benchmarks(config, "train")
    tokenizer = ensure_inputs(config)
    check_stores(config, "train", tokenizer)


def main() -> int:
    """Run on the file of the command line; return the exit code."""
    if len(sys.argv) != 2:
        print("usage: python -m trainer.launch.inputs CONFIG", file=sys.stderr)
        return Exit.mendable
    try:
        make_inputs(Path(sys.argv[1]))
    except TrainerError as error:
        print(f"Error: {error}", file=sys.stderr, flush=True)
        return Exit.mendable
    return Exit.done


if __name__ == "__main__":
    sys.exit(main())
