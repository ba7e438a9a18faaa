"""metrics.jsonl and ledger.jsonl through kills and resumes."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import random
import resource
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.attempts import has_finished
from launch.status import run_status
from tests.helpers.damage import damage
from trainer.errors import TrainerError
from trainer.metrics import line_file
from trainer.metrics.effective import effective
from trainer.metrics.jsonl import JsonlSink, Ledger, changed_line, read, truncate_after


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "metrics.jsonl"


def _write(path: Path, steps: range) -> None:
    sink = JsonlSink(path)
    for step in steps:
        sink.write(step, {"loss": 1.0 / (step + 1)})
    sink.close("finished")


def test_records_have_step_and_time_and_are_readable_before_close(path: Path) -> None:
    sink = JsonlSink(path)
    sink.write(3, {"loss": 0.1 + 0.2, "stage": "train", "skipped": False})
    (record,) = read(path)
    assert record.pop("time") > 1.7e9
    assert record == {"step": 3, "loss": 0.1 + 0.2, "stage": "train", "skipped": False}
    sink.close("finished")


def test_non_finite_numbers_stay_valid_json_and_come_back(path: Path) -> None:
    JsonlSink(path).write(1, {"loss": math.nan, "grad_norm": math.inf, "low": -math.inf})
    json.loads(path.read_text(), parse_constant=pytest.fail)
    (record,) = read(path)
    assert math.isnan(record["loss"])
    assert (record["grad_norm"], record["low"]) == (math.inf, -math.inf)


@contextlib.contextmanager
def room_for(num_bytes: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes, as on a disk that is full from there on."""
    old_signal = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    old_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, old_limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_signal)


def test_lines_that_a_full_disk_does_not_take_wait_and_come_in_order(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is there in part meanwhile, and a person hears of it twice: when it begins and when it is over."""
    caplog.set_level("INFO")
    ledger_path = path.with_name("ledger.jsonl")
    metrics, ledger = JsonlSink(path), Ledger(ledger_path)
    metrics.write(0, {"loss": 1.0})
    ledger.write("saved", 0)
    before = {name.name: name.read_bytes() for name in path.parent.iterdir()}
    with room_for(100):
        for step in (1, 2, 3):
            metrics.write(step, {"loss": 0.5, "note": "x" * 60})
            ledger.write("skipped", step)
        assert {name.name: name.read_bytes() for name in path.parent.iterdir()} == before
        for file in (metrics, ledger):
            with pytest.raises(OSError, match="File too large"):
                file.sync()
    metrics.write(4, {"loss": 0.25})
    ledger.sync()
    assert [row["step"] for row in read(path)] == [0, 1, 2, 3, 4]
    assert [row["step"] for row in read(ledger_path)] == [0, 1, 2, 3]
    assert changed_line(ledger_path) is None
    for name, number in ((path, 4), (ledger_path, 3)):
        said = [line for line in caplog.messages if str(name) in line]
        assert len(said) == 2 and "could not be written: File too large" in said[0], said
        assert said[1] == f"{name} is whole: the disk has taken {number} lines."


def test_what_a_disk_says_that_it_lost_is_written_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems have no room only when a file is brought to the disk, and keep nothing of it then."""
    sink, whole = JsonlSink(path), os.fsync
    sink.write(1, {"loss": 1.0})
    sink.sync()
    sink.write(2, {"loss": 0.5})
    sink.write(3, {"loss": 0.25})

    def lose(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", lose)
    with pytest.raises(OSError, match="No space left") as caught:
        sink.sync()
    assert caught.value.filename == str(path)
    assert [row["step"] for row in read(path)] == [1]
    monkeypatch.setattr(os, "fsync", whole)
    sink.close("finished")
    assert [row["step"] for row in read(path)] == [1, 2, 3]


def test_nobody_waits_for_ever_for_a_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_file, "_MOST_WAITING", 300)
    sink = JsonlSink(path)
    with room_for(0):
        sink.write(1, {"note": "x" * 100})
        sink.write(2, {"note": "x" * 100})
        with pytest.raises(OSError, match="File too large"):
            sink.write(3, {"note": "x" * 100})
        for _ in range(2):  # the file is closed then
            with contextlib.suppress(OSError):
                sink.close("failed")
    assert read(path) == []


def test_reading_a_missing_file_gives_nothing(path: Path) -> None:
    assert read(path) == []
    assert truncate_after(path, 5, path.with_name("aside")) == 0


@pytest.mark.parametrize("torn", [b'{"step":4,"lo', b"[" * 100_000, b"\x00\x00\x00", b'{"step":4,"a":"\xc3'])
def test_a_torn_tail_is_not_read_and_does_not_spoil_the_next_line(path: Path, torn: bytes) -> None:
    _write(path, range(4))
    with path.open("ab") as file:
        file.write(torn)
    assert [record["step"] for record in read(path)] == [0, 1, 2, 3]
    _write(path, range(4, 6))
    assert [record["step"] for record in read(path)] == [0, 1, 2, 3, 4, 5]


def test_a_last_line_that_only_lacks_its_newline_is_kept(path: Path) -> None:
    _write(path, range(2))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    _write(path, range(2, 3))
    assert [record["step"] for record in read(path)] == [0, 1, 2]


def test_garbage_in_the_middle_is_named_with_its_line(path: Path) -> None:
    _write(path, range(2))
    with path.open("ab") as file:
        file.write(b"garbage\n")
    _write(path, range(2, 3))
    with pytest.raises(TrainerError, match=r"metrics\.jsonl:3 must be one JSON object"):
        read(path)


def test_resume_moves_the_steps_after_it_and_the_torn_line_aside(path: Path) -> None:
    _write(path, range(10))
    before = path.read_bytes()
    with path.open("ab") as file:
        file.write(b'{"step":"x"}\n{"step":10,')
    aside = path.parent / "abandoned-1" / "metrics.jsonl"
    assert truncate_after(path, 6, aside) == 5
    assert [record["step"] for record in read(path)] == [0, 1, 2, 3, 4, 5, 6]
    assert path.read_bytes() + aside.read_bytes() == before + b'{"step":"x"}\n{"step":10,\n'
    assert sorted(path.parent.iterdir()) == [aside.parent, path]
    _write(path, range(7, 9))
    assert [record["step"] for record in read(path)] == [0, 1, 2, 3, 4, 5, 6, 7, 8]


def test_where_nothing_is_moved_nothing_is_made(path: Path) -> None:
    _write(path, range(3))
    before = path.read_bytes()
    assert truncate_after(path, 2, path.parent / "abandoned-1" / "metrics.jsonl") == 0
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_the_ledger_keeps_nested_events_over_restarts(path: Path) -> None:
    for attempt in (1, 2):
        ledger = Ledger(path)
        ledger.write("start", 0, attempt=attempt, tokens={"web": 3, "replay": [1, 2]})
        ledger.close()
    first, second = read(path)
    assert (first["event"], first["step"], first["attempt"]) == ("start", 0, 1)
    assert second["tokens"] == {"web": 3, "replay": [1, 2]}
    assert second["time"] >= first["time"]


@pytest.mark.parametrize("what", ["bit", "line out", "line twice", "order", "added"])
def test_a_changed_ledger_is_found_and_named(path: Path, what: str, caplog: pytest.LogCaptureFixture) -> None:
    for attempt in (1, 2):
        ledger = Ledger(path)
        for step in range(3):
            ledger.write("saved", step, attempt=attempt, seconds=1.5)
        ledger.close()
    assert changed_line(path) is None
    lines = path.read_bytes().splitlines(keepends=True)
    changed = {
        "bit": [*lines[:2], lines[2].replace(b"1.5", b"1.4"), *lines[3:]],
        "line out": [*lines[:2], *lines[3:]],
        "line twice": [*lines[:3], *lines[2:]],
        "order": [*lines[:2], lines[3], lines[2], *lines[4:]],
        "added": [*lines[:3], b'{"event":"saved","step":9,"time":1}\n', *lines[3:]],
    }[what]
    path.write_bytes(b"".join(changed))
    at = {"line twice": 4, "added": 4}.get(what, 3)
    assert changed_line(path) == at
    ledger = Ledger(path)
    assert f"{path}:{at} is not as it was written" in caplog.text
    ledger.write("saved", 7)
    ledger.close()


def test_a_ledger_of_a_version_without_digests_goes_on(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"event":"saved","step":1,"time":1}\n')
    ledger = Ledger(path)
    ledger.write("saved", 2)
    ledger.close()
    assert changed_line(path) is None and [row["step"] for row in read(path)] == [1, 2]


EVENTS = ("started", "saved", "skipped", "spike", "went_back", "stopped")


@functools.cache
def whole_ledger() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.jsonl")
        for step, event in enumerate(EVENTS):
            ledger.write(event, step, seconds=1.5, reason="finished", num_steps=9, data_digest="0" * 32)
        ledger.close()
        return (Path(folder) / "ledger.jsonl").read_bytes()


def outcome_of_ledger(seed: int, folder: Path) -> str:
    """Damage a ledger and let all read it that do; return what came of it, or fail."""
    folder.mkdir(exist_ok=True)
    path = folder / "ledger.jsonl"
    path.write_bytes(whole_ledger())
    path.with_name("metrics.jsonl").write_text('{"step":3,"time":1,"loss":1.0,"step_time_s":0.5}\n')
    before = read(path)
    path.write_bytes(damage(whole_ledger(), random.Random(seed)))
    outcome = "refused"
    try:
        found, number = read(path), changed_line(path)
        assert number is not None or found == before[: len(found)], seed
        assert effective(folder).lost_steps >= 0
        assert run_status(folder).step == 3
        assert has_finished(folder) in (True, False)
        outcome = "refused" if number is not None else "taken"
    except TrainerError as error:
        assert str(path) in str(error) and "must be one JSON object" in str(error)
    ledger = Ledger(path)
    ledger.write("saved", 9)
    ledger.close()
    return outcome


def test_no_damage_of_a_ledger_is_taken_silently_or_gives_a_traceback(tmp_path: Path) -> None:
    """Only what ends it is missed: lines that are cut off whole, or torn, as a killed process leaves them."""
    assert {outcome_of_ledger(seed, tmp_path) for seed in range(120)} == {"refused", "taken"}
