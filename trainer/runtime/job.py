"""What a job script, or who starts ranks on hosts, and the ranks tell each other: variables and files.

Each attempt of a job has a folder of logs. Ranks log there, and leave their exit code there, because
torchrun, and DeepSpeed's launcher after a signal, end with 1 whatever their ranks end with.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

LOG_DIR = "PALIMPSEST_LOG_DIR"
DEADLINE = "PALIMPSEST_DEADLINE"
VARIABLES = "PALIMPSEST_VARIABLES"
"""Variable with the file of the other variables of ranks on hosts: a command line can be read by everybody there."""
EXIT_CODE = "exit-code"
RESTARTS = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")
"""Variables that count how often a job was started again."""


def given_log_dir(environ: Mapping[str, str]) -> Path | None:
    """Return the attempt's folder of logs, which the script made; None without a script."""
    return Path(environ[LOG_DIR]) if environ.get(LOG_DIR) else None


def deadline(environ: Mapping[str, str]) -> float | None:
    """Return when the job is killed, in seconds since 1970; None when it is not."""
    text = environ.get(DEADLINE, "")
    return float(text) if text.isdigit() else None


def is_requeued(environ: Mapping[str, str]) -> bool:
    """Tell whether the scheduler or torchrun starts these ranks again, rather than a person for the first time."""
    return any(environ.get(name, "").isdigit() and int(environ[name]) > 0 for name in RESTARTS)


def as_shells_tell(returncode: int) -> int:
    """Return the exit code of a process as a shell tells it: 128 and the signal's number where one ended it.

    DeepSpeed's launcher hands on -9 as it is, of which the system keeps 247.
    """
    if returncode > 256 - signal.NSIG:
        returncode -= 256
    return returncode if returncode >= 0 else 128 - returncode


def leave_exit_code(environ: Mapping[str, str], code: int, is_first: bool) -> None:
    """Tell the script how the ranks ended; the first rank to know is right.

    Success is only the first rank's to tell: the others may be done before it has written its last file.
    """
    folder = given_log_dir(environ)
    if folder is None or (code == 0 and not is_first):
        return
    try:
        with (folder / EXIT_CODE).open("x", encoding="utf-8") as file:
            file.write(f"{code}\n")
    except OSError:
        return


@contextlib.contextmanager
def handed_over(folder: Path, variables: Mapping[str, str]) -> Iterator[Path]:
    """Keep variables in a file that its owner alone can read, as long as the block lasts; yield it."""
    path = folder / ".variables.json"
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(dict(variables), file)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def take_over(environ: MutableMapping[str, str]) -> None:
    """Take the variables that were left in a file; where it is not seen, nor is the configuration, which says so."""
    with contextlib.suppress(KeyError, FileNotFoundError):
        environ.update(json.loads(Path(environ[VARIABLES]).read_text(encoding="utf-8")))
