"""Which checkpoints a mean is of."""

from pathlib import Path

import pytest
import torch

from tests.helpers.committed import commit
from trainer.checkpoint.commit import seal
from trainer.checkpoint.layout import STATE, step_dir
from trainer.checkpoint.manifest import Lineage, Manifest
from trainer.checkpoint.several import find_last
from trainer.checkpoint.state import TrainState, write_state
from trainer.dist.mesh import alone
from trainer.errors import CheckpointError

ALONE = alone(torch.device("cpu"))


def save(run_dir: Path, step: int, run: str = "one", attempt: int = 1) -> Path:
    def write(staging):
        write_state(staging / STATE, TrainState(step=step))
        return [seal(staging / STATE)]

    manifest = Manifest(step, 1, 1, "config", "data", Lineage(run, attempt, None), {}, {})
    return commit(run_dir, manifest, write, ALONE)


def test_they_are_the_named_one_and_those_before_it_of_its_line(tmp_path):
    """15 is of a run that was begun anew; 40 is after the named one; 10 is of an earlier start of the same run."""
    for step, run, attempt in (
        (10, "one", 1),
        (15, "other", 1),
        (20, "one", 2),
        (30, "one", 2),
        (40, "one", 2),
    ):
        save(tmp_path, step, run, attempt)
    found = find_last(step_dir(tmp_path, 30), 3)
    assert [folder.name for folder in found] == ["step-00000030", "step-00000020", "step-00000010"]
    assert find_last(step_dir(tmp_path, 40), 2) == [step_dir(tmp_path, 40), step_dir(tmp_path, 30)]
    assert find_last(step_dir(tmp_path, 15), 1) == [step_dir(tmp_path, 15)]
    with pytest.raises(CheckpointError, match=r"kept of a run up to step-00000030, 3, but is 4 instead. Set"):
        find_last(step_dir(tmp_path, 30), 4)


def test_a_damaged_one_is_not_passed_over(tmp_path):
    """The mean would be of others than the person thinks."""
    for step in (10, 20, 30):
        save(tmp_path, step)
    (step_dir(tmp_path, 20) / STATE).write_text("{}")
    with pytest.raises(CheckpointError, match="step-00000020 does not"):
        find_last(step_dir(tmp_path, 30), 3)
