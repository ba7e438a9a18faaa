"""The commit protocol: a checkpoint is there whole or not at all, whatever happens while it is written."""

import json
import os
import random
import signal
import threading
from multiprocessing import get_context

import pytest
import torch

from tests.helpers.committed import commit
from tests.helpers.damage import damage
from tests.helpers.wait import LIMIT_S
from trainer.checkpoint import commit as commit_module
from trainer.checkpoint.commit import remove_staging, seal
from trainer.checkpoint.layout import MANIFEST, checkpoints_dir, find_checkpoints, step_dir
from trainer.checkpoint.manifest import Lineage, Manifest, read_manifest
from trainer.checkpoint.verify import find_damage, inspect, newest_verified
from trainer.dist.mesh import alone
from trainer.errors import CheckpointError

ALONE = alone(torch.device("cpu"))


def manifest(step, run="one"):
    return Manifest(step, 1, 2, "config", "data", Lineage(run, 1, None), {}, {"device": "cpu"})


def writer(step, names=("engine/a.pt", "engine/b.pt", "state.json")):
    def write(staging):
        written = []
        for name in names:
            path = staging / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{name} of step {step}".encode() * 10)
            written.append(seal(path))
        return written

    return write


def save(run_dir, step, run="one"):
    return commit(run_dir, manifest(step, run), writer(step), ALONE)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_committed_checkpoint_verifies_and_leaves_no_staging(tmp_path):
    folder = save(tmp_path, 100)
    assert folder == step_dir(tmp_path, 100) and folder.name == "step-00000100"
    read = read_manifest(folder)
    assert (read.step, read.zero_stage, read.facts) == (100, 2, {"device": "cpu"})
    assert read.lineage == Lineage("one", 1, None)
    assert sorted(read.files) == ["engine/a.pt", "engine/b.pt", "state.json"]
    assert find_damage(folder, read) is None
    assert newest_verified(tmp_path, on_damage=pytest.fail) == (folder, read)
    entries = sorted(entry.name for entry in checkpoints_dir(tmp_path).iterdir())
    assert entries == ["latest", "step-00000100"]
    assert (checkpoints_dir(tmp_path) / "latest").read_text() == "step-00000100\n"


@pytest.mark.parametrize(
    ("problem", "sentence"),
    [
        (OSError(28, "No space left on device"), "Free space or set run_dir to a larger disk"),
        (RuntimeError("shard lost"), "shard lost. The last checkpoint is untouched."),
    ],
)
def test_a_failing_write_leaves_the_previous_checkpoint_and_nothing_else(tmp_path, problem, sentence):
    before = save(tmp_path, 1)

    def write(staging):
        (staging / "half").write_text("x")
        raise problem

    with pytest.raises(CheckpointError, match=sentence) as caught:
        commit(tmp_path, manifest(2), write, ALONE)
    assert str(caught.value).startswith(f"The checkpoint {step_dir(tmp_path, 2)} could not be written: ")
    assert newest_verified(tmp_path)[0] == before
    assert sorted(e.name for e in checkpoints_dir(tmp_path).iterdir()) == ["latest", "step-00000001"]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    checkpoints_dir(tmp_path).write_text("a file in the way")
    with pytest.raises(CheckpointError, match="could not be written"):
        save(tmp_path, 1)


def test_the_same_step_again_replaces_the_checkpoint(tmp_path):
    save(tmp_path, 5)
    commit(tmp_path, manifest(5), writer(5, ["state.json"]), ALONE)
    folder, read = newest_verified(tmp_path)
    assert list(read.files) == ["state.json"]
    assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == [MANIFEST, "state.json"]


def test_a_flipped_bit_in_any_file_is_found_and_the_one_before_is_taken(tmp_path):
    save(tmp_path, 1)
    folder = save(tmp_path, 2)
    read = read_manifest(folder)
    assert len(read.files) == 3
    for name in read.files:
        path = folder / name
        content = path.read_bytes()
        for position in (0, len(content) // 2, len(content) - 1):
            changed = bytearray(content)
            changed[position] ^= 4
            path.write_bytes(changed)
            assert find_damage(folder, read) == f"{name} has another content than was written"
            said = []
            assert newest_verified(tmp_path, on_damage=said.append)[0] == step_dir(tmp_path, 1)
            assert len(said) == 1 and "step-00000002 does not verify" in said[0] and name in said[0]
        path.write_bytes(content)
    assert find_damage(folder, read) is None


def test_short_and_missing_files_are_found(tmp_path):
    folder = save(tmp_path, 1)
    read = read_manifest(folder)
    path = folder / "engine" / "b.pt"
    path.write_bytes(path.read_bytes()[:-1])
    assert "bytes instead of" in find_damage(folder, read)
    path.unlink()
    assert "engine/b.pt cannot be read (No such file or directory)" in find_damage(folder, read)


def test_ranks_that_verify_together_read_every_file_once(tmp_path):
    folder = save(tmp_path, 1)
    read = read_manifest(folder)
    for name in read.files:
        path = folder / name
        content = path.read_bytes()
        path.write_bytes(content[::-1])
        found = [find_damage(folder, read, share, 2) for share in (0, 1)]
        assert sum(damage is not None for damage in found) == 1
        path.write_bytes(content)


@pytest.mark.parametrize("size", [0, 1, 100, -1])
def test_a_torn_manifest_is_no_manifest(tmp_path, size):
    before = save(tmp_path, 1)
    path = save(tmp_path, 2) / MANIFEST
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="is not a valid manifest"):
        read_manifest(path.parent)
    assert newest_verified(tmp_path, on_damage=lambda text: None)[0] == before


def test_an_edited_manifest_is_found_by_its_own_seal(tmp_path):
    path = save(tmp_path, 2) / MANIFEST
    outer = json.loads(path.read_text())
    outer["manifest"]["zero_stage"] = 3
    path.write_text(json.dumps(outer))
    with pytest.raises(CheckpointError, match="its digest does not match"):
        read_manifest(path.parent)


def test_no_damage_of_a_manifest_is_taken_silently_or_gives_a_traceback(tmp_path):
    """What means the same may pass: another space between two words."""
    before, folder = save(tmp_path, 1), save(tmp_path, 2)
    path = folder / MANIFEST
    whole = path.read_bytes()
    for seed in range(200):
        path.write_bytes(damage(whole, random.Random(seed)))
        try:
            is_same = json.dumps(json.loads(path.read_bytes())) == json.dumps(json.loads(whole))
        except ValueError:
            is_same = False
        manifest, found = inspect(folder)
        assert is_same or (found is not None and "is not a valid manifest: " in found), (seed, found)
        assert is_same or manifest is None
        assert newest_verified(tmp_path, on_damage=lambda text: None)[0] == (folder if is_same else before)


def test_latest_is_only_a_hint(tmp_path):
    newest = save(tmp_path, 2)
    for text in ("step-00000001\n", "nonsense", ""):
        (checkpoints_dir(tmp_path) / "latest").write_text(text)
        assert newest_verified(tmp_path)[0] == newest
    (checkpoints_dir(tmp_path) / "latest").unlink()
    assert newest_verified(tmp_path)[0] == newest


def test_only_folders_named_after_steps_are_checkpoints_and_the_newest_comes_first(tmp_path):
    assert find_checkpoints(tmp_path) == [] and newest_verified(tmp_path) is None
    for step in (9, 100, 20):
        save(tmp_path, step)
    for name in ("step-12", "step-000000099", "other", ".step-00000200.0123456789ab.0123456789ab-7-77.tmp"):
        (checkpoints_dir(tmp_path) / name).mkdir()
    assert [folder.name for folder in find_checkpoints(tmp_path)] == [
        "step-00000100",
        "step-00000020",
        "step-00000009",
    ]
    remove_staging(tmp_path)
    assert not list(checkpoints_dir(tmp_path).glob(".*"))


@pytest.mark.parametrize(
    ("moment", "survives"),
    [
        ("while writing", 1),
        ("before the manifest", 1),
        ("before the rename", 1),
        ("before the pointer", 2),
    ],
)
def test_kill_9_in_the_middle_of_a_commit_leaves_a_valid_checkpoint(tmp_path, moment, survives):
    """A failure: something becomes visible under its final name before it is whole."""
    save(tmp_path, 1)
    write = writer(2)

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    def half(staging):
        write(staging)
        (staging / "engine" / "b.pt").write_bytes(b"torn")
        die()

    def work():
        match moment:
            case "before the manifest":
                commit_module.manifest_text = die
            case "before the rename":
                os.rename = die
            case "before the pointer":
                os.replace = die
        commit(tmp_path, manifest(2), half if moment == "while writing" else write, ALONE)

    process = get_context("fork").Process(target=work)
    process.start()
    process.join(LIMIT_S)
    assert process.exitcode == -signal.SIGKILL
    folder, read = newest_verified(tmp_path, on_damage=pytest.fail)
    assert folder == step_dir(tmp_path, survives)
    assert find_damage(folder, read) is None
    remove_staging(tmp_path)
    assert not list(checkpoints_dir(tmp_path).glob(".step-*"))
    assert save(tmp_path, 3) == newest_verified(tmp_path)[0]


def test_a_kill_while_a_checkpoint_is_replaced_loses_none_once_the_run_starts_again(tmp_path):
    """Between the two renames the step has no name of its own; the next start gives it back."""
    before = contents(save(tmp_path, 1))

    def work():
        real = os.rename
        os.rename = lambda *names: (real(*names), os._exit(9))
        commit(tmp_path, manifest(1), writer(1, ["state.json"]), ALONE)

    process = get_context("fork").Process(target=work)
    process.start()
    process.join(LIMIT_S)
    assert process.exitcode == 9 and newest_verified(tmp_path) is None
    remove_staging(tmp_path)
    assert contents(newest_verified(tmp_path, on_damage=pytest.fail)[0]) == before
    assert sorted(e.name for e in checkpoints_dir(tmp_path).iterdir()) == ["latest", "step-00000001"]


class Meeting:
    """Two ranks as threads: what a Mesh's collectives do, without processes."""

    num_ranks = 2

    def __init__(self, rank, shared):
        self.rank, self._shared = rank, shared

    @property
    def is_first(self):
        return self.rank == 0

    def gather(self, value):
        values, barrier = self._shared
        values[self.rank] = value
        barrier.wait()
        result = list(values)
        barrier.wait()
        return result

    def broadcast(self, value):
        return self.gather(value)[0]

    def from_first(self, make):
        return self.broadcast(make() if self.is_first else None)


def run_two_ranks(function):
    shared = ([None, None], threading.Barrier(2, timeout=LIMIT_S))
    results = [None, None]

    def body(rank):
        try:
            results[rank] = function(Meeting(rank, shared))
        except CheckpointError as error:
            results[rank] = error

    threads = [threading.Thread(target=body, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    return results


def test_two_ranks_write_one_checkpoint(tmp_path):
    def both(mesh):
        return commit(tmp_path, manifest(1), writer(1, [f"engine/rank-{mesh.rank}"]), mesh)

    assert run_two_ranks(both) == [step_dir(tmp_path, 1)] * 2
    assert sorted(newest_verified(tmp_path)[1].files) == ["engine/rank-0", "engine/rank-1"]


def test_a_failure_of_one_rank_is_the_same_sentence_on_all(tmp_path):
    """Without the agreement one rank would raise and the other wait in the next collective for ever."""

    def one_fails(mesh):
        def write(staging):
            if mesh.rank == 1:
                raise OSError(122, "Disk quota exceeded")
            return writer(1)(staging)

        return commit(tmp_path, manifest(1), write, mesh)

    first, second = run_two_ranks(one_fails)
    assert isinstance(first, CheckpointError) and str(first) == str(second)
    assert "Disk quota exceeded" in str(first) and "Free space" in str(first)
    assert newest_verified(tmp_path) is None
    assert not list(checkpoints_dir(tmp_path).iterdir())
