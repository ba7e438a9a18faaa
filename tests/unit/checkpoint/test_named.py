"""A checkpoint by what a person calls it."""

from pathlib import Path

import pytest
import torch

from tests.helpers.committed import commit
from trainer.checkpoint.commit import seal
from trainer.checkpoint.layout import MANIFEST, STATE, step_dir
from trainer.checkpoint.manifest import Lineage, Manifest
from trainer.checkpoint.named import find_checkpoint, why_not_named
from trainer.checkpoint.state import TrainState, write_state
from trainer.dist.mesh import alone
from trainer.errors import CheckpointError

ALONE = alone(torch.device("cpu"))


def save(run_dir: Path, step: int, best_step: int | None) -> Path:
    def write(staging):
        write_state(staging / STATE, TrainState(step=step, best_step=best_step))
        return [seal(staging / STATE)]

    return commit(
        run_dir, Manifest(step, 1, 1, "config", "data", Lineage("one", 1, None), {}, {}), write, ALONE
    )


@pytest.fixture
def run_dir(tmp_path):
    for step in (10, 20, 30):
        save(tmp_path, step, best_step=20)
    return tmp_path


@pytest.mark.parametrize(("which", "step"), [("last", 30), ("best", 20), ("10", 10), ("00030", 30)])
def test_a_checkpoint_is_found_by_what_a_person_calls_it(run_dir, which, step):
    assert find_checkpoint(run_dir, which) == step_dir(run_dir, step)


@pytest.mark.parametrize("which", ["newest", "", "-1", "step-00000010", "1.5"])
def test_any_other_name_is_refused_with_the_names_that_work(run_dir, which):
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(run_dir, which)
    assert f"must be last, best or a step number, but is '{which}' instead" in str(caught.value)


def test_a_step_that_was_not_saved_is_refused_with_those_that_were(run_dir):
    with pytest.raises(
        CheckpointError,
        match=r"must be last, best or a step that is saved \(10, 20, 30\), but is 16 instead. Set .*=20",
    ):
        find_checkpoint(run_dir, "16")


def test_a_step_that_is_not_there_is_refused_before_anything_is_read(run_dir):
    (step_dir(run_dir, 30) / STATE).write_text("{}")
    assert "`evaluate.checkpoint` must be last, best or a step that is saved" in why_not_named(
        run_dir, "16", "evaluate.checkpoint"
    )
    assert "must be last, best or a step number" in why_not_named(run_dir, "newest")
    assert why_not_named(run_dir, "30") is why_not_named(run_dir, "best") is None, "which is seen by reading"


@pytest.mark.parametrize("which", ["last", "best", "30"])
def test_no_older_checkpoint_is_taken_for_one_that_is_damaged(run_dir, which, capsys):
    """The one before was exported as the last, with exit code 0."""
    (step_dir(run_dir, 30) / STATE).write_text("{}")
    with pytest.raises(
        CheckpointError,
        match=r"`export.checkpoint` must be a checkpoint that verifies, but step-00000030 does not: .*\. Take another "
        r"on purpose: export.checkpoint=20\.$",
    ):
        find_checkpoint(run_dir, which)
    assert capsys.readouterr().out == ""
    assert find_checkpoint(run_dir, "20") == step_dir(run_dir, 20)


@pytest.mark.parametrize("best_step", [5, None], ids=["gone", "never evaluated"])
def test_a_run_that_has_no_best_checkpoint_says_which_there_are(tmp_path, best_step):
    save(tmp_path, 10, best_step)
    with pytest.raises(CheckpointError, match=r"saved \(10\), but is best instead, of") as caught:
        find_checkpoint(tmp_path, "best")
    assert "-1" not in str(caught.value).replace(str(tmp_path), "")


@pytest.mark.parametrize("which", ["last", "best", "10"])
def test_a_run_directory_without_a_valid_checkpoint_is_named(tmp_path, which):
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"holds none instead\. Train first\.") as caught:
            find_checkpoint(tmp_path / "run", which)
        assert str(tmp_path / "run") in str(caught.value)
        folder = save(tmp_path / "run", 10, best_step=10)
        (folder / MANIFEST).write_text("{")
