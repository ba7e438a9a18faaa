"""The one way by which a folder that must appear whole appears, and what a process that dies at it leaves behind.

    .NAME.TOKEN.OWNER.tmp    being filled, or on its way out: may be half a folder, and goes
    .NAME.TOKEN.OWNER.old    what NAME was, whole, while another takes its place

OWNER is a process: its machine, its number and when it began.

stage -> fill -> private files as the umask says -> fsync files and folders -> NAME becomes .old -> .tmp becomes NAME ->
fsync the parent -> .old goes.
After a crash NAME is the old folder or the new one, whole. Only between the two renames there is no NAME: whoever
publishes there next, or clears up, brings the old one back. Readers do not, because a writer may be at work.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from trainer.config.fence import check_publish
from trainer.runtime.holder import started, this_machine

STALE_S = 24 * 3600
"""Nothing is written to a folder for so long that somebody still fills, of whom nothing else can be known."""
TRIES = 20
"""Of a swap. Each that fails has met another process that published to the same place at the same moment."""
PRIVATE = 0o600
"""Mode of what was a temporary file, whatever the umask says."""
_LEFTOVER = re.compile(
    r"\.(?P<name>.+)\.[0-9a-f]{12}"
    r"(\.tmp|\.(?P<machine>[0-9a-f]{12})-(?P<pid>[0-9]+)-(?P<started>[0-9]*)\.(?P<kind>tmp|old))",
    re.DOTALL,
)
"""Folders, and files of `write_atomic`, which tell nothing of who made them: `.NAME.TOKEN.tmp`."""
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY)


def publish_folder(
    target: Path, fill: Callable[[Path], None], keeps: Callable[[Path], bool] = lambda there: False
) -> None:
    """Fill a folder and put it in its place: whole, or nothing changes. `keeps` is that of put_in_place."""
    with staged(target) as staging:
        fill(staging)
        put_in_place(staging, target, keeps)


@contextlib.contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Give an empty folder beside the place of `target`; what is left of it afterwards is removed.

    The parent is made. What earlier processes left for this place is cleared: first of all the old folder stands again.

    Raises:
        CheckpointError: The place is in a run directory that another run has taken over.
    """
    target = _real(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(target.parent, target.name)
    staging = _beside(target, "tmp")
    try:
        staging.mkdir()
        yield staging
    finally:
        _remove(staging)


def put_in_place(staging: Path, target: Path, keeps: Callable[[Path], bool] = lambda there: False) -> None:
    """Sync a finished folder and rename it to `target`, whose parent is on the same file system.

    Args:
        keeps: Asked about what stands there: true leaves it and the finished folder as they are; it may also raise.
    Raises:
        OSError: What stood there still does, unless the parent alone could not be synced.
        CheckpointError: The place is in a run directory that another run has taken over.
    """
    target = _real(target)
    _follow_umask(staging)
    _sync_tree(staging)
    check_publish(target)  # syncing may take long
    aside = _beside(target, "old")
    try:
        if not _swap(staging, target, aside, keeps):
            return
    except BaseException:
        _settle(aside, target)
        raise
    sync_folder(target.parent)
    _settle(aside, target)


def clear_leftovers(parent: Path, name: str | None = None, older_s: float = STALE_S) -> None:
    """Bring back what was set aside and not replaced, and remove what was left half made.

    Args:
        name: Of one place; None means all in a folder that holds nothing else.
        older_s: Since when nothing is written to what is removed, unless its owner is known to have ended. 0 where no
            other process can be at work.
    Raises:
        CheckpointError: The folder is in a run directory that another run has taken over.
    """
    check_publish(parent)
    entries = list(parent.iterdir()) if parent.is_dir() else []
    for entry in entries:
        found = _LEFTOVER.fullmatch(entry.name)
        if found is None or name not in (None, found["name"]):
            continue
        if found["kind"] == "old":
            _settle(entry, entry.with_name(found["name"]))
        elif not older_s or _has_ended(found) or _newest_s(entry) < time.time() - older_s:
            _remove(entry)


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on disk, where the file system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _swap(staging: Path, target: Path, aside: Path, keeps: Callable[[Path], bool]) -> bool:
    """Rename what is there aside and the new folder into its place; false where what is there stays."""
    for left in reversed(range(TRIES)):
        if os.path.lexists(target):
            if keeps(target):
                return False
            with contextlib.suppress(FileNotFoundError):
                os.rename(target, aside)
        try:
            os.rename(staging, target)
            return True
        except OSError as error:
            if not left or error.errno not in _TAKEN:
                raise
            _settle(aside, target)
    raise AssertionError("unreachable")


def _settle(aside: Path, target: Path) -> None:
    """Remove what was set aside where its place is taken; bring it back where it is not."""
    with contextlib.suppress(OSError):
        if not os.path.lexists(target):
            os.rename(aside, target)
            return
        doomed = _beside(target, "tmp")
        os.rename(aside, doomed)  # from here on it may be half a folder, which nobody brings back
        _remove(doomed)


def _real(target: Path) -> Path:
    """Return the place that a link stands for, so that what is renamed there is on the same file system."""
    return Path(os.path.realpath(target))


def _beside(target: Path, kind: str) -> Path:
    pid = os.getpid()
    owner = f"{_machine()}-{pid}-{started(pid)}"
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.{owner}.{kind}")


def _machine() -> str:
    """Return 12 hexadecimal digits of what numbers of processes are counted in here."""
    return hashlib.sha256(repr(this_machine()).encode()).hexdigest()[:12]


def _has_ended(found: re.Match[str]) -> bool:
    """Tell whether whoever made what is left was a process of this machine, and is no more."""
    return (
        bool(found["started"])
        and found["machine"] == _machine()
        and started(int(found["pid"])) != found["started"]
    )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _newest_s(folder: Path) -> float:
    """Return when something was last written in a folder; now, where its owner removes it meanwhile."""
    try:
        return max(path.lstat().st_mtime for path in [folder, *folder.rglob("*")])
    except OSError:
        return time.time()


def _follow_umask(folder: Path) -> None:
    """Give files that a library wrote for their owner alone, as safetensors does, the mode of any other new file."""
    probe = folder / f".{uuid.uuid4().hex[:12]}.mode"
    probe.touch()
    usual = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path, _, files in os.walk(folder):
        for file in (Path(path) / name for name in files):
            if not file.is_symlink() and stat.S_IMODE(file.stat().st_mode) == PRIVATE:
                file.chmod(usual)


def _sync_tree(folder: Path) -> None:
    for path, _, files in os.walk(folder, topdown=False):
        for name in files:
            with (Path(path) / name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(path))
