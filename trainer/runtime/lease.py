"""Who may publish in a run directory: a file with a number that grows, also where file locks hold on one node only.

RUN_DIR/.lease/N says who has it: host, process, job, attempt, and by its time of change when it was last alive. Whoever
makes N + 1, which one alone can, has it from then on; the holder of N finds that before it publishes again, and ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from trainer.config.fence import held
from trainer.errors import CheckpointError
from trainer.runtime.disk import naming
from trainer.runtime.holder import Holder, Machine, is_running, started, this_machine

FOLDER = ".lease"
BEAT_S = 10.0
"""Between two signs of life."""
EXPIRES_S = 60.0
"""Without a sign of life, of a holder on another machine, of which nothing else can be known."""
POLL_S = 0.5
SETTLE_S = 1.0
"""Given to a holder who looked just before it was replaced: what it publishes is in its place then."""
_MOST_DIGITS = 15
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)


@dataclasses.dataclass(frozen=True, slots=True)
class NewestLease:
    """The newest lease of a run directory."""

    number: int
    holder: Holder | None
    """None while it is being written, or where it cannot be read."""
    beat_s: float
    """Time of its last sign of life, by the clock of whoever keeps the files."""


class Lease:
    """The right to publish in a run directory, for this process and those that it hands the id to."""

    def __init__(self, run_dir: Path, number: int, holder: Holder) -> None:
        """Take what was written; begins to give signs of life."""
        self.run_dir = run_dir
        self.id = holder.id
        self._holder = holder
        self._path = run_dir / FOLDER / f"{number:08d}"
        self._number = number
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Find out whether this process may still publish.

        Raises:
            CheckpointError: Another run has the directory.
        """
        with contextlib.suppress(OSError):
            os.utime(self._path)
        if self._is_mine():
            return
        now = newest(self.run_dir)
        other = now.holder.words if now is not None and now.holder is not None else "nobody"
        raise CheckpointError(
            f"`run_dir` must be held by the run that publishes in it, but {self.run_dir} is held by {other} instead: "
            f"this run gave no sign of life for {EXPIRES_S:.0f} s, or its lease was removed. It ends here, and nothing "
            "of it was published since."
        )

    def release(self) -> None:
        """Say that it is over; the number stays, so that it is never given twice."""
        self._stopped.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if self._is_mine() and not self._is_others():
                _replace(self._path, dataclasses.replace(self._holder, is_over=True))

    def _is_mine(self) -> bool:
        """Tell whether nobody has a higher number, and this one is as it was written."""
        # Read by its own name first: a machine may show for a while the names that a folder had.
        found = _read(self._path)
        if found is None or found.holder is None or found.holder.id != self.id:
            return False
        now = newest(self.run_dir)
        return now is not None and now.number == self._number

    def _is_others(self) -> bool:
        """Tell whether a rank to which the id was given has the lease, and may be alive."""
        found = _read(self._path)
        holder = None if found is None else found.holder
        if holder is None or holder.is_over or holder.pid == self._holder.pid:
            return False
        return holder.machine != self._holder.machine or is_running(holder)

    def _beat(self) -> None:
        while not self._stopped.wait(BEAT_S):
            with contextlib.suppress(OSError):
                os.utime(self._path)


def take(run_dir: Path, say: Callable[[str], None], given: str | None = None) -> Lease:
    """Take the lease of a run directory that is there.

    Args:
        say: Told of whom is waited for, and of whom it was taken from.
        given: The id of a lease that the starter of this process holds; it is taken over.
    Raises:
        CheckpointError: Another living process has it.
    """
    folder = run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    while True:
        found = newest(run_dir)
        me = _me(given if given and found and found.holder and found.holder.id == given else uuid.uuid4().hex)
        if found is not None and found.holder is not None and found.holder.id == given:
            _replace(folder / f"{found.number:08d}", me)
            return Lease(run_dir, found.number, me)
        if found is not None:
            refuse_alive(run_dir, found, me, say)
        number = 1 if found is None else found.number + 1
        if not _make(folder / f"{number:08d}", me):
            time.sleep(POLL_S)
            continue
        for old in folder.iterdir():  # what others are just writing has no number yet
            if _is_number(old.name) and int(old.name) < number:
                old.unlink(missing_ok=True)
        if found is not None and not _is_over(found, me):
            say(f"{run_dir} was held by {_words(found)}, which is gone: this run goes on in it.")
            time.sleep(SETTLE_S)
        return Lease(run_dir, number, me)


def refuse_alive(run_dir: Path, found: NewestLease, me: Holder, say: Callable[[str], None]) -> None:
    """Return once the holder of a lease is known to be gone; what is on another machine is watched for a while.

    Raises:
        CheckpointError: It is alive.
    """
    if _is_over(found, me):
        return
    if found.holder is not None and found.holder.machine == me.machine:
        if is_running(found.holder):
            raise in_use(run_dir, found.holder.words)
        return
    is_told, began = False, time.monotonic()
    while True:
        left_s = EXPIRES_S - max(_now_s(run_dir) - found.beat_s, time.monotonic() - began)
        if left_s <= 0:
            return
        if not is_told:
            say(
                f"Waits up to {left_s:.0f} s for a sign of life of {_words(found)}, which held {run_dir} last."
            )
            is_told = True
        time.sleep(min(POLL_S, left_s))
        now = newest(run_dir)
        if now is None or now.number != found.number or now.beat_s != found.beat_s:
            if now is not None and _is_over(now, me):
                return
            raise in_use(run_dir, _words(now or found))


def newest(run_dir: Path) -> NewestLease | None:
    """Return the newest lease; None in a directory that never had one."""
    folder = run_dir / FOLDER
    names = [name for name in os.listdir(folder) if _is_number(name)] if folder.is_dir() else []
    found = (_read(folder / name) for name in sorted(names, key=int, reverse=True))
    return next((one for one in found if one is not None), None)


def is_held(run_dir: Path) -> bool | None:
    """Return whether a process that trains in a run directory is there; None where that cannot be told."""
    found = newest(run_dir)
    if found is None or found.holder is None:
        return None
    if found.holder.machine == this_machine():
        return is_running(found.holder)
    return time.time() - found.beat_s < EXPIRES_S


def _is_number(name: str) -> bool:
    """Tell whether a file is a lease by its name: others are nobody's."""
    return name.isascii() and name.isdigit() and len(name) <= _MOST_DIGITS


def _read(path: Path) -> NewestLease | None:
    """Read a lease; None where it is not there."""
    number = int(path.name)
    try:
        # Opened by its name: what another machine wrote is seen by whoever opens it later.
        with path.open(encoding="utf-8") as file:
            beat_s = os.fstat(file.fileno()).st_mtime
            text = file.read()
    except FileNotFoundError:
        return None
    except ValueError:
        return NewestLease(number, None, path.stat().st_mtime)
    try:
        plain = json.loads(text)
        holder = Holder(**{**plain, "machine": Machine(**plain["machine"])})
        if type(holder.pid) is not int or type(holder.attempt) is not int:
            raise TypeError(plain)
    except (ValueError, TypeError, LookupError, RecursionError):
        return NewestLease(number, None, beat_s)
    return NewestLease(number, holder, beat_s)


@contextlib.contextmanager
def leased(run_dir: Path, say: Callable[[str], None], given: str | None = None) -> Iterator[str]:
    """Hold the lease of a run directory inside, where it is asked before everything that is published; yield its id.

    Raises:
        CheckpointError: Another living process has it.
    """
    lease = take(Path(os.path.realpath(run_dir)), say, given)
    try:
        with held(run_dir, lease.check):
            yield lease.id
    finally:
        lease.release()


def in_use(run_dir: Path, holder: str) -> CheckpointError:
    """Return the error of a run directory that somebody else has."""
    return CheckpointError(
        f"`run_dir` must be used by one run at a time, but {run_dir} is in use by {holder} instead. "
        "Wait for it, stop it, or give another run_dir."
    )


def _me(name: str) -> Holder:
    restarts = os.environ.get("SLURM_RESTART_COUNT", "")
    return Holder(
        name,
        this_machine(),
        os.getpid(),
        started(os.getpid()),
        os.environ.get("SLURM_JOB_ID", ""),
        int(restarts) if restarts.isdigit() else 0,
    )


def _is_over(found: NewestLease, me: Holder) -> bool:
    """Tell whether a holder has said that it is over, or SLURM has ended it: it is an earlier attempt of this job."""
    holder = found.holder
    return holder is not None and (
        holder.is_over or (holder.job != "" and holder.job == me.job and holder.attempt < me.attempt)
    )


def _words(found: NewestLease) -> str:
    return "another process" if found.holder is None else found.holder.words


def _now_s(run_dir: Path) -> float:
    """Return the time by the clock that stamps files there."""
    probe = run_dir / FOLDER / f".{uuid.uuid4().hex[:12]}.now"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _make(path: Path, holder: Holder) -> bool:
    """Write a lease where there is none of that number; false where another was faster."""
    staged = path.with_name(f".{holder.id[:12]}.{uuid.uuid4().hex[:6]}.tmp")
    try:
        with naming(path):
            staged.write_text(_text(holder), encoding="utf-8")
        os.link(staged, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(_text(holder))
        except FileExistsError:
            return False
    finally:
        staged.unlink(missing_ok=True)
    return True


def _replace(path: Path, holder: Holder) -> None:
    staged = path.with_name(f".{holder.id[:12]}.{uuid.uuid4().hex[:6]}.tmp")
    try:
        with naming(path):
            staged.write_text(_text(holder), encoding="utf-8")
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def _text(holder: Holder) -> str:
    return json.dumps(dataclasses.asdict(holder)) + "\n"
