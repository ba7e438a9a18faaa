"""Installs Debian's packages that tests need, where that can be done."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.helpers.wait import LIMIT_S

LOCK = Path(tempfile.gettempdir()) / "palimpsest-packages"


class NotInstalled(Exception):
    """Why a program is not here."""


def install(programs: Sequence[str], packages: Sequence[str]) -> None:
    """Install packages unless their programs are there.

    Raises:
        NotInstalled: Not root, or no such packages.
    """

    def are_there() -> bool:
        return all(map(shutil.which, programs))

    if are_there():
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise NotInstalled(
            f"one of {', '.join(programs)} is missing, and only root installs it, with apt-get"
        )
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
    with LOCK.open("w") as lock:
        # apt-get does not wait for that of another session, which may want the same.
        fcntl.flock(lock, fcntl.LOCK_EX)
        for attempt in (command, ["apt-get", "update", "-qq"], command):
            if are_there():
                return
            with contextlib.suppress(subprocess.SubprocessError):
                subprocess.run(attempt, env=environment, capture_output=True, timeout=LIMIT_S)
    if not are_there():
        raise NotInstalled(f"apt-get could not install {', '.join(packages)}")
