"""A finished run that is started again: nothing is started where all that is asked for is there, and else it is."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from launch import done
from launch.submit import submit
from tests.dist.session import config_of, train_frozen
from trainer.checkpoint.layout import step_dir
from trainer.cli import run_command
from trainer.command import finished
from trainer.command.finished import find_finished
from trainer.metrics.jsonl import Ledger

WORDS = ["train.max_steps=2", "zero.stage=2"]


@pytest.fixture(scope="module")
def trained(pool: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a run of two steps, with the comparison and a report, and its workspace, which is its own."""
    from tests.dist.session import make_inputs

    workspace = tmp_path_factory.mktemp("inputs")
    pool(1).run(make_inputs, folder=str(workspace))
    run_dir = tmp_path_factory.mktemp("again") / "run"
    run_dir.mkdir()
    pool(1).run(train_frozen, workspace=str(workspace), run_dir=str(run_dir), words=WORDS)
    return run_dir, str(workspace)


def is_done(run_dir: Path, workspace: str, *words: str) -> bool:
    found = find_finished(config_of(workspace, run_dir, *WORDS, *words))
    assert (
        found is not None
        and f"{run_dir} is finished: 2 of 2 steps are trained, and step-00000002" in found.sentence
    )
    assert ("All that was asked for is there, and nothing was started." in found.sentence) == found.is_done
    if not found.is_done:
        assert (
            "No step is left: only" in found.sentence
            or "the checkpoint of step 2 is not as it was" in found.sentence
        )
    return found.is_done


def files_of(folder: Path) -> dict[str, float]:
    return {str(path): path.stat().st_mtime for path in folder.rglob("*") if path.is_file()}


def test_it_says_so_and_ends_before_ranks_start(trained, capsys, monkeypatch):
    run_dir, _ = trained
    before = files_of(run_dir)
    assert run_command(["train", "--config", str(run_dir / "config.yaml")]) == 0
    assert "All that was asked for is there, and nothing was started." in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["done", str(run_dir / "config.yaml")])
    assert done.main() == 0, "of a job that is put back into the queue"
    assert files_of(run_dir) == before


def test_it_is_not_handed_in_again(trained, capsys):
    run_dir, workspace = trained
    assert submit(config_of(workspace, run_dir, *WORDS), is_dry=False) == 0
    assert "All that was asked for is there, and nothing was started." in capsys.readouterr().out
    assert not (run_dir / "job.sh").exists() and not (run_dir / "attempts.jsonl").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate.micro_batch_size=3"],
        ["log.every_steps=7"],
        ["gate.sets.target.min_drop_nats=0.1"],
        ["checkpoint.keep_last=9"],
        ["optim.lr=0.5"],
        ["train.max_steps=3"],
    ],
)
def test_what_asks_for_something_else_goes_on(trained, words):
    assert not is_done(*trained, *words)


def test_how_the_work_is_spread_asks_for_nothing(trained):
    assert is_done(
        *trained, "zero.stage=3", "train.micro_batch_size=2", "export.merge=true", "data.num_workers=1"
    )


def test_a_run_that_lacks_something_goes_on(trained, tmp_path):
    run_dir, workspace = trained

    def copy() -> Path:
        return Path(shutil.copytree(run_dir, tmp_path / str(time.monotonic_ns())))

    assert is_done(copy(), workspace)
    for name in ("report.html", "forgetting.json", "checkpoints/step-00000002/manifest.json"):
        one = copy()
        (one / name).unlink()
        assert not is_done(one, workspace), name
    begun = copy()
    ledger = Ledger(begun / "ledger.jsonl")
    ledger.write("started", 2, num_steps=2)
    ledger.write("stopped", 2, reason="finished")
    ledger.close()
    assert not is_done(begun, workspace), "killed before it had told its trackers"


@pytest.mark.parametrize("most_read", [finished.MOST_READ_BYTES, 0])
def test_a_damaged_checkpoint_goes_on_of_a_large_one_as_far_as_sizes_tell(
    trained, tmp_path, monkeypatch, most_read
):
    run_dir, workspace = trained
    monkeypatch.setattr(finished, "MOST_READ_BYTES", most_read)
    damaged = Path(shutil.copytree(run_dir, tmp_path / "run"))
    (file,) = (step_dir(damaged, 2) / "shards").glob("*-00000.safetensors")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    assert is_done(damaged, workspace) == (most_read == 0)
    file.write_bytes(bytes(content)[:-1])
    assert not is_done(damaged, workspace)


def test_inputs_that_were_changed_since_go_on_and_are_refused_there_as_ever(trained, tmp_path):
    run_dir, workspace = trained
    config = config_of(workspace, run_dir, *WORDS)
    data = Path(next(iter(config.data.sources.values())).path or "")
    weights = Path(config.model.path or "") / "config.json"
    for path in (data, weights):
        was = path.stat().st_mtime
        os.utime(path, (time.time() + 60, time.time() + 60))
        assert not is_done(run_dir, workspace), path
        found = find_finished(config)
        assert found is not None and f"since {path} was changed afterwards" in found.sentence
        os.utime(path, (was, was))
    assert is_done(run_dir, workspace)
