"""Two runs never publish in one directory, also where the file locks of two machines do not know each other."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trainer.config.fence import check_publish
from trainer.errors import CheckpointError
from trainer.runtime import lease
from trainer.runtime.lease import FOLDER, leased, newest, take
from trainer.runtime.lock import LEASE, locked_for_ranks, refuse_in_use, run_lock
from trainer.runtime.publish import publish_folder

HOLDER = """
import sys, time
from pathlib import Path
from trainer.runtime.lease import leased
with leased(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(9999)
"""


@pytest.fixture
def swift(monkeypatch):
    """Let nobody wait for long."""
    for name, seconds in (("EXPIRES_S", 0.6), ("BEAT_S", 0.1), ("POLL_S", 0.05), ("SETTLE_S", 0.05)):
        monkeypatch.setattr(lease, name, seconds)


@pytest.fixture
def elsewhere(monkeypatch):
    """Return a function that moves this process to another machine, whose locks the first one does not see."""
    here = lease.this_machine()

    def move(host: str) -> None:
        monkeypatch.setattr(lease, "this_machine", lambda: dataclasses.replace(here, host=host, boot=host))
        monkeypatch.setattr(fcntl, "flock", lambda *_: None)

    return move


@pytest.fixture
def silent(monkeypatch):
    """Return a function that takes a lease which gives no sign of life, as a process that is stopped does not."""

    def hold(run_dir):
        with monkeypatch.context() as patch:
            patch.setattr(lease.Lease, "_beat", lambda self: None)
            return take(run_dir, print)

    return hold


def test_of_two_machines_one_alone_starts_while_the_other_lives(tmp_path: Path, swift, elsewhere) -> None:
    elsewhere("node1")
    told: list[str] = []
    with run_lock(tmp_path):
        elsewhere("node2")
        with pytest.raises(CheckpointError, match=f"in use by process {os.getpid()} on node1"):
            take(tmp_path, told.append)
        assert told[0].startswith("Waits up to ") and "node1" in told[0]
    elsewhere("node2")
    told.clear()
    with leased(tmp_path, told.append):
        assert told == [], "who has said that it is over is not waited for"


def test_who_gave_no_sign_of_life_is_replaced_and_publishes_nothing_any_more(
    tmp_path: Path, swift, elsewhere, silent
) -> None:
    elsewhere("node1")
    first = silent(tmp_path)
    first.check()
    elsewhere("node2")
    told: list[str] = []
    with leased(tmp_path, told.append):
        assert "was held by process" in told[-1] and "which is gone" in told[-1]
        with pytest.raises(CheckpointError, match=r"`run_dir` must be held by the run .* on node2 instead"):
            first.check()
        publish_folder(tmp_path / "checkpoints" / "step-1", lambda folder: (folder / "a").touch())
    first.release()
    found = newest(tmp_path)
    assert found is not None and found.number == 2, "its end says nothing about the other"


def test_what_a_lost_lease_would_publish_is_not_in_its_place(
    tmp_path: Path, swift, elsewhere, silent
) -> None:
    target = tmp_path / "checkpoints" / "step-1"
    with leased(tmp_path, print):
        publish_folder(target, lambda folder: (folder / "old").touch())
        path = tmp_path / FOLDER / "00000002"
        path.write_text((tmp_path / FOLDER / "00000001").read_text().replace('"id": "', '"id": "x'))
        with pytest.raises(CheckpointError, match="must be held by the run that publishes"):
            publish_folder(target, lambda folder: (folder / "new").touch())
        assert [entry.name for entry in target.iterdir()] == ["old"]
        check_publish(tmp_path.parent / "elsewhere")


def test_of_many_that_find_a_dead_holder_one_takes_it(tmp_path: Path, swift, elsewhere, silent) -> None:
    elsewhere("node1")
    silent(tmp_path)
    elsewhere("node2")

    def attempt(number: int) -> bool:
        try:
            take(tmp_path, lambda line: None)
        except CheckpointError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1


@pytest.mark.parametrize("has_links", [True, False])
def test_a_holder_that_was_killed_on_this_machine_is_replaced_at_once(
    tmp_path: Path, monkeypatch, has_links: bool
) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match=f"in use by process {first.pid} on"):
            take(tmp_path, print)
        first.send_signal(signal.SIGKILL)
        first.wait()
    if not has_links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(1, "no links here")))
    monkeypatch.setattr(lease, "SETTLE_S", 0)
    take(tmp_path, print).release()
    assert [entry.name for entry in (tmp_path / FOLDER).iterdir()] == ["00000002"]


def test_a_process_with_the_number_of_the_dead_one_is_another(tmp_path: Path, swift) -> None:
    held = take(tmp_path, print)
    path = tmp_path / FOLDER / "00000001"
    record = json.loads(path.read_text())
    held._stopped.set()
    path.write_text(json.dumps({**record, "started": "1"}))
    take(tmp_path, print).release()


def test_a_later_attempt_of_a_job_does_not_wait_for_the_earlier_one(tmp_path, monkeypatch, elsewhere, silent):
    """SLURM has ended it, and a minute of a hundred GPUs is not for nothing; were it alive, it could not publish."""
    elsewhere("node1")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    first = silent(tmp_path)
    elsewhere("node2")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    take(tmp_path, pytest.fail).release()
    with pytest.raises(CheckpointError, match="must be held by the run that publishes"):
        first.check()


def test_a_disk_without_locks_is_enough(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with run_lock(tmp_path):
        second = run_lock(tmp_path)
        with pytest.raises(CheckpointError, match="must be used by one run at a time"):
            second.__enter__()


def test_ranks_take_over_what_their_starter_holds(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from trainer.runtime.lock import run_lock\n"
    code += "with run_lock(Path(sys.argv[1])): print('ran')"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with locked_for_ranks(tmp_path):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.stdout == "ran\n", done.stderr
        environment = {name: value for name, value in os.environ.items() if name != LEASE}
        other = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert "must be used by one run at a time" in other.stderr
    assert LEASE not in os.environ


def test_asking_whether_a_directory_is_in_use_changes_nothing(tmp_path: Path) -> None:
    refuse_in_use(tmp_path)
    assert [*tmp_path.iterdir()] == []
    with run_lock(tmp_path):
        before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.is_file()}
        with pytest.raises(CheckpointError, match="in use by process"):
            refuse_in_use(tmp_path)
        assert {path: path.stat().st_mtime_ns for path in before} == before
    refuse_in_use(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff{",
        b"[" * 100_000,
        b'{"id":"a","machine":{"host":"h","boot":"b","processes":"p"},"pid":[],"started":"",'
        b'"job":"","attempt":1}',
    ],
    ids=["no text", "nested", "no number"],
)
def test_a_lease_that_cannot_be_read_is_waited_for(tmp_path: Path, swift, content: bytes) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "00000004").write_bytes(content)
    told: list[str] = []
    take(tmp_path, told.append).release()
    assert "another process" in told[-1]
    assert [entry.name for entry in (tmp_path / FOLDER).iterdir()] == ["00000005"]


@pytest.mark.parametrize("name", ["²", "9" * 200, "0001x"])
def test_a_file_among_the_leases_that_is_none_is_nobodys(tmp_path: Path, name: str) -> None:
    """The first ended every command of the run in a traceback."""
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / name).touch()
    assert newest(tmp_path) is None
    take(tmp_path, pytest.fail).release()
    assert sorted(entry.name for entry in (tmp_path / FOLDER).iterdir()) == sorted(["00000001", name])
