"""Build report.html in a run directory."""

from __future__ import annotations

from pathlib import Path

from trainer.config.snapshot import write_atomic
from trainer.report.page import build_page
from trainer.report.record import read_run

FILE_NAME = "report.html"


def build_report(run_dir: Path) -> Path:
    """Write the report of a run from its files alone, whole or not at all; return its path.

    Ranks:
        One process; nothing of the run needs to be alive.
    Raises:
        TrainerError: The directory holds no run, or a file of it cannot be understood.
    """
    path = run_dir / FILE_NAME
    write_atomic(path, build_page(read_run(run_dir)))
    return path
