"""Say whether a run of which no step is left has all that it was asked for: its job then ends at once.

One process on the first node of a job, before its ranks; started by the batch script as `python -m trainer.launch.done
CONFIG`. It ends with 0 where that is so, and otherwise with 1 and without a word: the ranks are started as ever.
"""

from __future__ import annotations

import sys
from pathlib import Path

from trainer.command.finished import find_finished
from trainer.config.store import load_config
from trainer.errors import Exit, TrainerError


def main() -> int:
    """Look at the run of the file of the command line; return the exit code."""
    try:
        found = find_finished(load_config(Path(sys.argv[1])))
    except (TrainerError, LookupError):
        return Exit.died
    if found is None or not found.is_done:
        return Exit.died
    print(found.sentence, flush=True)
    return Exit.done


if __name__ == "__main__":
    sys.exit(main())
