"""A folder is there whole or not at all, whatever happens at any step of putting it there."""

import itertools
import os
import signal
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.wait import LIMIT_S
from tests.house.tree import ROOT
from trainer.config.snapshot import write_atomic
from trainer.runtime.publish import clear_leftovers, publish_folder, put_in_place, staged

OLD = {"a": "old", "deep/b": "old too", "deep/only": "old"}
NEW = {"a": "new", "deep/b": "new too", "deep/er/c": "new"}
TOKEN = "0123456789ab.0123456789ab-7-77"
"""Of a process on another machine."""


def write(content, folder):
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def fill_new(folder):
    write(NEW, folder)


def content(folder):
    """Return every file of a folder; None where there is none."""
    if not folder.is_dir():
        return None
    return {str(f.relative_to(folder)): f.read_text() for f in folder.rglob("*") if f.is_file()}


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def publish_and_die(target, number):
    """Publish in a process that ends before its call `number` of the operating system that changes the disk."""
    left = number

    def dying(real):
        def call(*arguments, **options):
            nonlocal left
            left -= 1
            if left < 0:
                os._exit(9)
            return real(*arguments, **options)

        return call

    def work():
        for name in ("mkdir", "fsync", "rename", "unlink", "rmdir"):
            setattr(os, name, dying(getattr(os, name)))
        publish_folder(target, fill_new)

    process = get_context("fork").Process(target=work)
    process.start()
    process.join(LIMIT_S)
    return process.exitcode


def fail(folder):
    write({"a": "half"}, folder)
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("before", [OLD, None], ids=["replaced", "first"])
def test_after_a_death_at_any_step_one_folder_is_whole_and_the_next_call_finds_it(tmp_path, before):
    seen = []
    for number in itertools.count():
        target = tmp_path / str(number) / "out"
        if before is not None:
            write(before, target)
        code = publish_and_die(target, number)
        assert code in (0, 9)
        found = content(target)
        asides = list(target.parent.glob(".out.*.old"))
        assert found in (before, NEW, None)
        if found is None and before is not None:
            assert [content(aside) for aside in asides] == [before], "no name holds the old folder"
        seen.append("nothing" if found is None else "new" if found == NEW else "old")
        with pytest.raises(OSError, match="No space"):
            publish_folder(target, fail)
        assert content(target) == (before if found is None else found), "what stood must stand again"
        publish_folder(target, fill_new)
        assert content(target) == NEW
        clear_leftovers(target.parent, older_s=0)
        assert names(target.parent) == ["out"]
        if code == 0:
            break
    order = [name for name, _ in itertools.groupby(seen)]
    assert order == (["nothing", "new"] if before is None else ["old", "nothing", "new"])
    assert before is None or seen.count("nothing") == 1, "only between the two renames"
    assert len(seen) > 10


def test_everything_is_on_disk_before_its_name_and_the_old_one_goes_last(tmp_path, monkeypatch):
    target = tmp_path / "out"
    write(OLD, target)
    calls = []

    def spy(name, describe):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, **k: (calls.append((name, describe(*a))), real(*a, **k))[1])

    spy("fsync", lambda handle: Path(os.readlink(f"/proc/self/fd/{handle}")))
    spy("rename", lambda source, goal: (Path(source), Path(goal)))
    spy("rmdir", lambda *_: None)
    spy("unlink", lambda *_: None)
    with staged(target) as staging:
        fill_new(staging)
        calls.clear()
        put_in_place(staging, target)
        done = list(calls)
    kinds = [kind for kind, _ in done]
    first = kinds.index("rename")
    synced = {path for kind, path in done[:first] if kind == "fsync"}
    assert synced == {staging, *(staging / name for name in (*NEW, "deep", "deep/er"))}
    aside, into = done[first][1], done[first + 1][1]
    assert aside[0] == target and into == (staging, target)
    assert done[first + 2] == ("fsync", tmp_path)
    assert set(kinds[first + 3 :]) == {"rename", "rmdir", "unlink"}


def test_a_fill_that_fails_changes_nothing(tmp_path):
    target = tmp_path / "out"
    for before in (None, OLD):
        if before is not None:
            write(before, target)
        with pytest.raises(OSError, match="No space"):
            publish_folder(target, fail)
        assert content(target) == before and names(tmp_path) == ([] if before is None else ["out"])


def test_a_rename_that_is_refused_brings_the_old_one_back(tmp_path, monkeypatch):
    target = tmp_path / "out"
    write(OLD, target)
    real, calls = os.rename, []

    def refuse_second(source, goal):
        calls.append(goal)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        real(source, goal)

    monkeypatch.setattr(os, "rename", refuse_second)
    with pytest.raises(OSError, match="Input/output"):
        publish_folder(target, fill_new)
    assert content(target) == OLD and names(tmp_path) == ["out"]


def test_what_is_kept_stays_and_a_refusal_is_passed_on(tmp_path):
    target = tmp_path / "out"
    write(OLD, target)
    publish_folder(target, fill_new, keeps=lambda there: content(there) == OLD)
    assert content(target) == OLD

    def refuse(there):
        raise ValueError(f"{there.name} is somebody's")

    with pytest.raises(ValueError, match="somebody's"):
        publish_folder(target, fill_new, keeps=refuse)
    assert content(target) == OLD and names(tmp_path) == ["out"]


def test_a_file_and_an_empty_folder_in_the_place_are_replaced(tmp_path):
    for number, make in enumerate((Path.mkdir, Path.touch)):
        target = tmp_path / str(number) / "out"
        target.parent.mkdir()
        make(target)
        publish_folder(target, fill_new)
        assert content(target) == NEW and names(target.parent) == ["out"]


def test_a_folder_of_any_name_is_brought_back(tmp_path):
    for name in ("a [b]*", "two\nlines", ".hidden", f"x.{TOKEN}.old", "\udcff"):
        write(OLD, tmp_path / f".{name}.{TOKEN}.old")
        with pytest.raises(OSError, match="No space"):
            publish_folder(tmp_path / name, fail)
        assert content(tmp_path / name) == OLD
    assert len(names(tmp_path)) == 5


def test_a_link_is_followed_and_stays(tmp_path):
    (tmp_path / "large" / "disk").mkdir(parents=True)
    link = tmp_path / "out"
    link.symlink_to(tmp_path / "large" / "disk")
    publish_folder(link, fill_new)
    assert link.is_symlink() and content(link) == NEW == content(tmp_path / "large" / "disk")
    assert names(tmp_path / "large") == ["disk"]


def test_processes_that_publish_to_one_place_at_once_leave_one_whole_folder(tmp_path):
    target = tmp_path / "out"

    def work():
        for _ in range(100):
            publish_folder(target, fill_new)

    processes = [get_context("fork").Process(target=work) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LIMIT_S)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert content(target) == NEW and names(tmp_path) == ["out"]


def test_only_what_nobody_writes_any_more_is_cleared_and_nothing_of_others(tmp_path):
    stale, fresh = tmp_path / f".out.{TOKEN}.tmp", tmp_path / ".out.ba9876543210.0123456789ab-7-77.tmp"
    foreign = [
        tmp_path / name for name in (".out.tmp", f".out.{TOKEN}.txt", f"out.{TOKEN}.tmp", ".cache.tmp")
    ]
    other = tmp_path / f".other.{TOKEN}.tmp"
    for folder in (stale, fresh, other, *foreign):
        write({"deep/file": "text"}, folder)
    for folder in (stale, other):
        for path in [*folder.rglob("*"), folder]:
            os.utime(path, (1, 1))
    os.utime(fresh, (1, 1))
    assert time.time() - (fresh / "deep/file").stat().st_mtime < LIMIT_S
    kept = sorted(path.name for path in (fresh, *foreign))
    publish_folder(tmp_path / "out", fill_new)
    assert names(tmp_path) == sorted([*kept, other.name, "out"])
    clear_leftovers(tmp_path)
    assert names(tmp_path) == sorted([*kept, "out"])
    clear_leftovers(tmp_path, older_s=0)
    assert names(tmp_path) == sorted(["out", *(path.name for path in foreign)])
    clear_leftovers(tmp_path / "nowhere")


def test_what_a_process_of_this_machine_left_goes_as_soon_as_it_has_ended(tmp_path):
    target = tmp_path / "out"
    begun, end = get_context("fork").Pipe()

    def work():
        with staged(target) as staging:
            write({"deep/file": "text"}, staging)
            end.send(staging.name)
            signal.pause()

    process = get_context("fork").Process(target=work)
    process.start()
    left = begun.recv()
    clear_leftovers(tmp_path)
    assert names(tmp_path) == [left]
    others = left.replace(left.split(".")[3].split("-")[0], "0" * 12)
    write({"deep/file": "text"}, tmp_path / others)
    process.kill()
    process.join(LIMIT_S)
    publish_folder(target, fill_new)
    assert names(tmp_path) == sorted([others, "out"])


@pytest.mark.parametrize(("umask", "usual"), [(0o022, 0o644), (0o027, 0o640)])
def test_files_that_a_library_writes_for_their_owner_alone_follow_the_umask(tmp_path, umask, usual):
    """safetensors writes through a private temporary file; weights that a group cannot read are of no use to it."""

    def fill(folder):
        (folder / "deep").mkdir()
        save_file({"a": torch.zeros(1)}, str(folder / "deep" / "model.safetensors"))
        (folder / "plain").write_text("a")
        (folder / "script").write_text("a")
        (folder / "script").chmod(0o700)  # on purpose

    before = os.umask(umask)
    try:
        publish_folder(tmp_path / "export", fill)
    finally:
        os.umask(before)
    modes = {f.name: f.stat().st_mode & 0o777 for f in (tmp_path / "export").rglob("*") if f.is_file()}
    assert modes == {"model.safetensors": usual, "plain": usual, "script": 0o700}


def test_no_file_of_safetensors_is_written_beside_a_folder_that_is_published():
    """save_file leaves a private file, which only publishing opens: all who call it fill such a folder."""
    callers = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "trainer").rglob("*.py")
        if "save_file(" in path.read_text()
    }
    assert callers == {
        "trainer/evaluate/proofs/fingerprint.py",  # of a checkpoint
        "trainer/export/merge.py",
        "trainer/export/weights.py",
    }


def test_a_file_that_a_death_left_beside_its_place_goes_where_nobody_else_can_be_at_work(tmp_path):
    """`write_atomic` dies between making `.latest.TOKEN.tmp` and its rename: a later start left it there for good."""
    left = tmp_path / ".latest.0123456789ab.tmp"
    left.write_text("step-00000006\n")
    clear_leftovers(tmp_path)
    assert names(tmp_path) == [left.name]  # it may be written this very moment
    clear_leftovers(tmp_path, older_s=0)
    assert names(tmp_path) == []


def test_what_is_cleared_is_called_as_write_atomic_calls_it(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "replace", lambda self, target: os._exit(0))
    process = get_context("fork").Process(target=write_atomic, args=(tmp_path / "latest", "step\n"))
    process.start()
    process.join(LIMIT_S)
    assert len(names(tmp_path)) == 1
    clear_leftovers(tmp_path, older_s=0)
    assert names(tmp_path) == []
