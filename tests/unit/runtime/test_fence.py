"""Whoever has lost a run directory publishes, prunes, renames and appends nothing there any more, and says so."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.checkpoint import lineage, prune
from trainer.checkpoint.commit import remove_staging
from trainer.checkpoint.layout import step_dir
from trainer.checkpoint.manifest import Lineage, Manifest, manifest_text
from trainer.config import fence
from trainer.config.fence import LOOK_S, check_publish, held
from trainer.config.snapshot import write_atomic
from trainer.errors import CheckpointError
from trainer.metrics.jsonl import JsonlSink, Ledger, truncate_after
from trainer.metrics.tracker import Bookmark, Told
from trainer.runtime.lease import FOLDER, SETTLE_S, leased
from trainer.runtime.publish import publish_folder

FIRST = Manifest(1, 1, 1, "c", "d", Lineage("run", 1, None), {}, {})
SECOND = dataclasses.replace(FIRST, step=2)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return the directory of a run with two checkpoints, records and a report."""
    for manifest in (FIRST, SECOND):
        step_dir(tmp_path, manifest.step).mkdir(parents=True)
        (step_dir(tmp_path, manifest.step) / "manifest.json").write_text(manifest_text(manifest))
    for name in ("metrics.jsonl", "ledger.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2)))
    (tmp_path / "report.html").write_text("before")
    return tmp_path


def take_over(run: Path) -> None:
    """Be another machine, which had no sign of life of this one."""
    lease = max((run / FOLDER).iterdir())
    taken = lease.with_name(f"{int(lease.name) + 1:08d}")
    taken.write_text(lease.read_text().replace('"id": "', '"id": "x'))


def state_of(run: Path) -> dict[str, bytes]:
    """Return every file but the leases."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and FOLDER not in path.parts
    }


ACTS: dict[str, Callable[[Path], object]] = {
    "a file": lambda run: write_atomic(run / "report.html", "after"),
    "a folder": lambda run: publish_folder(run / "export", lambda folder: (folder / "new").touch()),
    "prune": lambda run: prune.prune(run, SECOND, prune.Retention(1, None, None)),
    "set aside": lambda run: lineage.set_aside(step_dir(run, 1)),
    "abandon": lambda run: lineage.abandon(run),
    "clear": lambda run: remove_staging(run),
    "go back": lambda run: truncate_after(run / "metrics.jsonl", 1, run / "abandoned-1" / "metrics.jsonl"),
    "open a file of lines": lambda run: JsonlSink(run / "samples.jsonl"),
    "a tracker's bookmark": lambda run: Bookmark(run / "trackers" / "file.json").advance(Told(1, 1)),
}


@pytest.mark.parametrize("name", ACTS)
def test_who_lost_the_lease_changes_nothing(run: Path, name: str) -> None:
    with leased(run, print):
        take_over(run)
        before = state_of(run)
        with pytest.raises(CheckpointError, match="`run_dir` must be held by the run that publishes in it"):
            ACTS[name](run)
        after = state_of(run)
        moved = {key for key in after if key.startswith("abandoned-")}
        assert {key: value for key, value in after.items() if key not in moved} == before


@pytest.mark.parametrize("name", ACTS)
def test_who_has_it_does(run: Path, name: str) -> None:
    """Without this the test above would pass with acts that do nothing anyway."""
    (run / "checkpoints" / ".step-00000003.0123456789ab.0123456789ab-7-77.tmp").mkdir()
    with leased(run, print):
        before = {path for path in run.rglob("*") if path.is_dir()}, state_of(run)
        ACTS[name](run)
        assert ({path for path in run.rglob("*") if path.is_dir()}, state_of(run)) != before


@pytest.mark.parametrize("kind", [JsonlSink, Ledger])
def test_lines_are_appended_until_the_next_look_and_no_longer(run: Path, monkeypatch, kind: type) -> None:
    """A look costs some calls of the file system; a new holder waits longer than one is good for."""
    assert LOOK_S <= SETTLE_S / 2
    now = [100.0]
    monkeypatch.setattr(fence.time, "monotonic", lambda: now[0])
    path = run / "metrics.jsonl"

    def append(file: object, step: int) -> None:
        if isinstance(file, Ledger):
            file.write("saved", step)
        elif isinstance(file, JsonlSink):
            file.write(step, {"loss": 1.0})

    with leased(run, print):
        file = kind(path)
        append(file, 3)
        take_over(run)
        now[0] += LOOK_S / 2
        append(file, 4)
        now[0] += LOOK_S
        lines = path.read_text()
        with pytest.raises(CheckpointError, match="must be held by the run that publishes"):
            append(file, 5)
        with pytest.raises(CheckpointError, match="must be held by the run that publishes"):
            append(file, 6)
        assert path.read_text() == lines and lines.count("\n") == 4


def test_a_link_in_the_directory_does_not_hide_a_file_from_the_question(tmp_path: Path) -> None:
    def lost() -> None:
        raise CheckpointError("lost")

    (tmp_path / "run").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "run" / "metrics.jsonl").symlink_to(tmp_path / "there" / "metrics.jsonl")
    (tmp_path / "alias").symlink_to(tmp_path / "run")
    with held(tmp_path / "alias", lost):
        for place in ("run/metrics.jsonl", "alias/report.html", "run/checkpoints/latest"):
            with pytest.raises(CheckpointError, match="lost"):
                check_publish(tmp_path / place)
        check_publish(tmp_path / "there" / "metrics.jsonl")
    check_publish(tmp_path / "run" / "metrics.jsonl")
