"""What a start goes on from, and what it sets aside: nothing is removed, and nothing begins anew by itself."""

import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.checkpoint.test_commit import ALONE, run_two_ranks, save
from trainer.checkpoint import verify
from trainer.checkpoint.layout import MANIFEST, checkpoints_dir, find_checkpoints, step_dir
from trainer.checkpoint.lineage import abandon, choose, set_aside
from trainer.checkpoint.verify import newest_verified, patiently
from trainer.errors import CheckpointError


def take(folder, manifest):
    return None


def names(run_dir):
    return sorted(entry.name for entry in checkpoints_dir(run_dir).iterdir() if entry.is_dir())


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage(folder, kind):
    if kind == "flipped":
        flip(folder / "engine" / "a.pt")
    elif kind == "torn":
        (folder / MANIFEST).write_text("{")
    elif kind == "no manifest":
        (folder / MANIFEST).unlink()
    elif kind == "short":
        (folder / "state.json").write_bytes(b"")
    elif kind == "missing":
        (folder / "engine" / "b.pt").unlink()


def test_an_empty_directory_is_a_beginning(tmp_path):
    assert choose(tmp_path, ALONE, take, pytest.fail) is None
    checkpoints_dir(tmp_path).mkdir()
    (checkpoints_dir(tmp_path) / ".step-00000001.abc.tmp").mkdir()
    assert choose(tmp_path, ALONE, take, pytest.fail) is None


KINDS = ["good", "flipped", "torn", "no manifest", "short", "missing", "will not load"]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=5))
def test_the_newest_that_can_be_used_is_taken_and_all_newer_ones_keep_a_name_of_their_own(kinds):
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder)
        for step, kind in enumerate(kinds, start=1):
            damage(save(run_dir, step, run=f"run-{step % 2}"), kind)
        before = names(run_dir)
        said, tried = [], []

        def load(folder, manifest):
            tried.append(folder.name)
            return "it answers otherwise" if kinds[manifest.step - 1] == "will not load" else None

        good = max((step for step, kind in enumerate(kinds, start=1) if kind == "good"), default=None)
        if good is None:
            with pytest.raises(CheckpointError, match=f"none of {len(kinds)} in .* can be used") as caught:
                choose(run_dir, ALONE, load, said.append)
            assert names(run_dir) == before and "checkpoint.resume=false" in str(caught.value)
            assert all(name in str(caught.value) for name in before)
            return
        found, manifest = choose(run_dir, ALONE, load, said.append)
        assert (found, manifest.step) == (step_dir(run_dir, good), good)
        worse = [step_dir(run_dir, step).name for step in range(good + 1, len(kinds) + 1)]
        assert names(run_dir) == sorted([*(set(before) - set(worse)), *(f"damaged-{name}" for name in worse)])
        assert len(said) == len(worse) and tried[-1] == found.name
        assert not find_checkpoints(run_dir) or find_checkpoints(run_dir)[0] == found


def test_what_was_set_aside_before_is_no_reason_to_begin_anew(tmp_path):
    set_aside(save(tmp_path, 4))
    set_aside(save(tmp_path, 4))
    assert names(tmp_path) == ["damaged-step-00000004", "damaged-step-00000004.2"]
    with pytest.raises(CheckpointError, match="set aside before"):
        choose(tmp_path, ALONE, take, pytest.fail)
    assert newest_verified(tmp_path, pytest.fail) is None


def test_ranks_agree_when_one_cannot_load(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)

    def body(mesh):
        def load(folder, manifest):
            mine = "rank 1 cannot read it" if mesh.rank == 1 and manifest.step == 2 else None
            return next((text for text in mesh.gather(mine) if text), None)

        return choose(tmp_path, mesh, load, lambda text: None)[0].name

    assert run_two_ranks(body) == ["step-00000001"] * 2
    assert names(tmp_path) == ["damaged-step-00000002", "step-00000001"]


def test_a_run_that_is_given_up_keeps_all_it_made(tmp_path):
    assert abandon(tmp_path) is None
    for attempt in (1, 2):
        save(tmp_path, 7)
        (tmp_path / "metrics.jsonl").write_text(f"{attempt}\n")
        (tmp_path / "forgetting.json").write_text("{}")
        (tmp_path / "config.yaml").write_text("x")
        assert abandon(tmp_path) == tmp_path / f"abandoned-{attempt}"
        assert find_checkpoints(tmp_path) == [] and not (tmp_path / "metrics.jsonl").exists()
    for attempt in (1, 2):
        left = tmp_path / f"abandoned-{attempt}"
        assert newest_verified(left, pytest.fail)[1].step == 7
        assert (left / "metrics.jsonl").read_text() == f"{attempt}\n"
        assert (left / "forgetting.json").exists()
    assert (tmp_path / "config.yaml").exists() and not (tmp_path / "forgetting.json").exists()


def test_an_error_of_the_disk_that_passes_is_no_damage(tmp_path, monkeypatch):
    """A link to itself cannot be opened (ELOOP) until the real file is back, as on a network disk that stumbles."""
    monkeypatch.setattr(verify, "PAUSES_S", (0.05,) * 200)
    folder = save(tmp_path, 3)
    path = folder / "engine" / "a.pt"
    content = path.read_bytes()
    path.unlink()
    path.symlink_to(path.name)
    seen = threading.Event()

    def read():
        try:
            return path.read_bytes()
        except OSError:
            seen.set()
            raise

    def mend():
        seen.wait(30)
        path.unlink()
        path.write_bytes(content)

    mending = threading.Thread(target=mend)
    mending.start()
    assert patiently(read) == content
    mending.join()
    assert choose(tmp_path, ALONE, take, pytest.fail)[0] == folder


def test_an_error_of_the_disk_that_stays_ends_the_start_and_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "PAUSES_S", (0.01, 0.01))
    for step in (1, 2):
        path = save(tmp_path, step) / MANIFEST
        path.unlink()
        path.symlink_to(path.name)
    before = names(tmp_path)
    with pytest.raises(CheckpointError, match=r"its manifest cannot be read \(Too many levels"):
        choose(tmp_path, ALONE, take, lambda text: None)
    assert names(tmp_path) == before
