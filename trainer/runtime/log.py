"""Logging of one rank: rank 0 speaks on the console, every rank keeps its full log in a file.

Standard error only; standard output belongs to the metrics lines. The console has our lines, and errors of libraries:
their other lines are nothing that a person can act on, and go to the file (trainer/runtime/libraries.py).
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TextIO

from trainer.runtime.job import given_log_dir
from trainer.runtime.libraries import shows_libraries, take_held
from trainer.runtime.visible import visible

# These put their own handlers on and stop propagation when they are imported.
_SELF_HANDLED = ("DeepSpeed", "transformers", "datasets", "huggingface_hub", "peft", "accelerate")
_OURS = ("trainer", "__main__", "launch")
_FILE_FORMAT = "%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s"

ATTEMPT = "attempt"
EVALUATION = "evaluation"
"""What begins the names of folders of logs: of trainings, and of evaluations, which are no attempts of a run."""

_installed: list[logging.Handler] = []


class _StandardErrorHandler(logging.StreamHandler[TextIO]):
    """Looks sys.stderr up at every record, so that a live progress bar can move out of the way."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    def format(self, record: logging.LogRecord) -> str:
        """Write out what a terminal would act on: a line may quote data."""
        return visible(super().format(record))

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


class _LogFile(logging.FileHandler):
    """A log file that says once that its disk takes no more, instead of a traceback for each line."""

    _has_failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._has_failed:
            self._has_failed = True
            print(f"{self.baseFilename} takes no more lines: {error.strerror}.", file=sys.stderr, flush=True)


def setup_logging(rank: int, world_size: int, log_dir: Path | None) -> None:
    """Route all logging of this process; a second call replaces the first.

    `log_dir` takes rank-<rank>.log; None keeps no file.

    Ranks:
        Every rank, each for itself. Rank 0 shows INFO of ours and ERROR of libraries; others show WARNING of ours
        behind their rank.
    """
    console = _StandardErrorHandler()
    console.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    prefix = "" if rank == 0 else f"[rank {rank}] "
    console.setFormatter(logging.Formatter(f"%(asctime)s %(levelname).1s {prefix}%(message)s", "%H:%M:%S"))
    console.addFilter(_is_worth_the_console)
    handlers: list[logging.Handler] = [console]
    if log_dir is not None:
        log_dir.mkdir(parents=True, exist_ok=True)
        file = _LogFile(log_dir / f"rank-{rank}.log", encoding="utf-8")
        file.setFormatter(logging.Formatter(_FILE_FORMAT))
        for record in take_held():
            file.handle(record)
        handlers.append(file)
    _install(handlers)
    logging.getLogger().setLevel(logging.INFO)
    logging.getLogger("trainer").setLevel(logging.DEBUG)
    logging.captureWarnings(True)
    adopt_library_loggers()
    logging.getLogger(__name__).debug("Rank %d of %d logs here.", rank, world_size)


def setup_messages(rank: int) -> None:
    """Show warnings of ours, and errors of libraries, as they are: for a command until it is a rank.

    Ranks:
        The first one's; the others read the same words and would say the same.
    """
    console = _StandardErrorHandler()
    console.setLevel(logging.WARNING if rank == 0 else logging.ERROR)
    console.addFilter(_is_worth_the_console)
    _install([console])


def _install(handlers: list[logging.Handler]) -> None:
    """Put handlers in the place of the earlier ones."""
    root = logging.getLogger()
    for handler in _installed:
        root.removeHandler(handler)
        handler.close()
    _installed[:] = handlers
    for handler in handlers:
        root.addHandler(handler)


def adopt_library_loggers() -> None:
    """Take over the handlers of DeepSpeed, transformers and others; call again after importing."""
    for name in _SELF_HANDLED:
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
        logger.propagate = True
        logger.setLevel(logging.INFO)


def log_dir() -> Path | None:
    """Return the folder that this rank logs to; None where it keeps no file."""
    return next((Path(one.baseFilename).parent for one in _installed if isinstance(one, _LogFile)), None)


def attempt_dirs(run_dir: Path) -> list[Path]:
    """Return the folders of logs of the attempts to train a run, newest first."""
    found = [path for path in run_dir.glob(f"logs/{ATTEMPT}-*") if _number(path) is not None]
    return sorted(found, key=lambda path: _number(path) or 0, reverse=True)


def _number(path: Path) -> int | None:
    text = path.name.rpartition("-")[2]
    return int(text) if text.isdecimal() else None


def attempt_dir(run_dir: Path, kind: str = ATTEMPT) -> Path:
    """Create and return the next free RUN_DIR/logs/attempt-N, or such a folder of another kind.

    A job script has made it already, and says where it is.

    Ranks:
        Rank 0 only, which tells the others; every call takes a new number.
    """
    given = given_log_dir(os.environ)
    if given is not None and given.parent == run_dir / "logs":
        given.mkdir(parents=True, exist_ok=True)
        return given
    logs = run_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    number = max((_number(path) or 0 for path in logs.glob(f"{kind}-*")), default=0)
    while True:
        number += 1
        path = logs / f"{kind}-{number}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path


def _is_worth_the_console(record: logging.LogRecord) -> bool:
    is_ours = record.name.split(".")[0] in _OURS
    return is_ours or record.levelno > logging.WARNING or shows_libraries()
