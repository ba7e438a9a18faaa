"""What a start makes of checkpoints that cannot be used: an older one, or a sentence; never step 0 by itself."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.dist.session import config_of, session_of, take_steps
from tests.dist.test_resume import config_for, contents, lines, losses, saver_of
from tests.helpers.committed import commit
from trainer.checkpoint.layout import FINGERPRINT, checkpoints_dir, step_dir
from trainer.checkpoint.manifest import read_manifest
from trainer.checkpoint.state import TrainState
from trainer.dist.mesh import alone
from trainer.errors import CheckpointError


def forge(run_dir: Path, change: float) -> None:
    """Commit the newest checkpoint anew with other logits in its fingerprint: it verifies, and is not what it says."""
    from safetensors.torch import load_file, save_file

    from trainer.checkpoint.commit import seal

    source = step_dir(run_dir, 6)

    def write(staging: Path) -> list[Any]:
        shutil.copytree(source, staging, dirs_exist_ok=True)
        tensors = load_file(staging / FINGERPRINT)
        save_file(tensors | {"logits": tensors["logits"] + change}, staging / FINGERPRINT)
        return [seal(f) for f in staging.rglob("*") if f.is_file() and f.name != "manifest.json"]

    commit(run_dir, dataclasses.replace(read_manifest(source), files={}), write, alone(torch.device("cpu")))


def go_on(mesh: Any, workspace: str, folder: str, stage: int, change: float) -> None:
    from trainer.run import training

    whole, again = Path(folder) / "whole", Path(folder) / "again"
    assert training.run_training(config_for(workspace, whole, stage)).value == "finished"
    if mesh.is_first:
        shutil.copytree(whole, again)
        forge(again, change)
    mesh.barrier()
    assert training.run_training(config_for(workspace, again, stage)).value == "finished"


@pytest.mark.parametrize(
    ("stage", "change"), [pytest.param(3, 0.5, marks=pytest.mark.slow), (1, float("nan"))]
)
def test_a_newest_checkpoint_that_is_not_sound_is_set_aside_and_the_one_before_goes_on(
    pool, workspace, tmp_path, stage, change
):
    """Other losses: something of the checkpoint that was loaded and refused is left in the engine."""
    pool(2).run(go_on, workspace=workspace, folder=str(tmp_path), stage=stage, change=change)
    whole, again = tmp_path / "whole", tmp_path / "again"
    names = sorted(path.name for path in checkpoints_dir(again).iterdir())
    assert names == ["damaged-step-00000006", "latest", "step-00000003", "step-00000006"]
    assert losses(again) == losses(whole) and sorted(losses(again)) == [1, 2, 3, 4, 5, 6]
    assert contents(step_dir(again, 6)) == contents(step_dir(whole, 6))
    before, after = (read_manifest(step_dir(again, step)).lineage for step in (3, 6))
    assert before.run == after.run and (after.attempt, after.parent) == (2, "step-00000003")
    aside = lines(again / "abandoned-1" / "metrics.jsonl")
    assert {record["step"] for record in aside} == {4, 5, 6}


def start_over(mesh: Any, workspace: str, folder: str) -> list[str]:
    from trainer.run import training

    run_dir = Path(folder)
    config = config_for(workspace, run_dir, 1)
    assert training.run_training(config).value == "finished"
    for step in (3, 6):
        path = next((step_dir(run_dir, step) / "shards").iterdir())
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    sentences = []
    for _ in range(2):
        before = (run_dir / "metrics.jsonl").read_bytes()
        with pytest.raises(CheckpointError) as caught:
            training.run_training(config)
        sentences.append(str(caught.value))
        assert (run_dir / "metrics.jsonl").read_bytes() == before
    anew = dataclasses.replace(config, checkpoint=dataclasses.replace(config.checkpoint, resume=False))
    for _ in range(2):
        assert training.run_training(anew).value == "finished"
    (run_dir / "checkpoints").rename(run_dir / "gone")
    with pytest.raises(CheckpointError, match="knows that step 6 was saved"):
        training.run_training(config)
    (run_dir / "gone").rename(run_dir / "checkpoints")
    return sentences


def test_a_run_never_starts_over_by_itself_and_keeps_all_when_it_is_told_to(pool, workspace, tmp_path):
    """Once it began at step 0, cut the metrics, and removed each new checkpoint for the damaged ones' sake."""
    first, second = pool(1).run(start_over, workspace=workspace, folder=str(tmp_path))[0]
    assert first == second and "none of 2" in first
    for part in (
        "step-00000003: ",
        "step-00000006: ",
        "another content",
        "checkpoint.resume=false",
        "abandoned-1",
    ):
        assert part in first
    here = [tmp_path, tmp_path / "abandoned-1", tmp_path / "abandoned-2"]
    for folder in here:
        assert sorted(losses(folder)) == [1, 2, 3, 4, 5, 6]
        assert [step_dir(folder, step).is_dir() for step in (3, 6)] == [True, True]
    runs = {read_manifest(step_dir(folder, 6)).lineage.run for folder in here}
    assert len(runs) == 3


def save_with_a_nan(mesh: Any, workspace: str, run_dir: str) -> list[str | None]:
    """Save a sound model, and one that is broken on one rank."""
    with session_of(config_of(workspace, run_dir, "zero.stage=1", "zero.dtype=bf16")) as session:
        take_steps(session, 1)
        saver = saver_of(session)
        saver.resume(goes_on=True)
        answers = [saver.save(TrainState(step=1))]
        if not mesh.is_first:
            next(iter(session.policy.engine.module.parameters())).data.view(-1)[5] = torch.inf
        answers.append(saver.save(TrainState(step=2)))
    return answers


def test_weights_that_are_not_finite_are_never_committed_and_take_no_place(pool, workspace, tmp_path):
    answers = pool(2).run(save_with_a_nan, workspace=workspace, run_dir=str(tmp_path))
    assert answers == [[None, "the weights, or the model's answers, are not finite"]] * 2
    assert sorted(path.name for path in checkpoints_dir(tmp_path).iterdir()) == ["latest", "step-00000001"]


def look_at_shards(mesh: Any, workspace: str, run_dir: str) -> list[Any]:
    """Tell what is said of a NaN in the padding of one rank's shard, and of one in its values."""
    found: list[Any] = []
    with session_of(config_of(workspace, run_dir, "zero.stage=3", "zero.dtype=bf16")) as session:
        take_steps(session, 1)
        saver = saver_of(session)
        saver.resume(goes_on=True)
        engine = session.policy.engine
        found.append(engine.has_finite_weights())
        parameter = max(session.policy.engine.module.parameters(), key=lambda p: p.ds_numel)
        shard = parameter.ds_tensor
        numel, parameter.ds_numel = parameter.ds_numel, parameter.ds_numel - 3
        kept = shard.data[-1].clone()
        shard.data[-1] = torch.nan
        found.append(engine.has_finite_weights())
        parameter.ds_numel = numel
        found.append(engine.has_finite_weights())
        if mesh.is_first:
            shard.data[-1] = kept
        found.append(engine.has_finite_weights())
        found.append(saver.save(TrainState(step=1)))
    return found


def test_every_rank_looks_at_its_shard_and_one_that_finds_a_nan_is_enough(pool, workspace, tmp_path):
    first, second = pool(2).run(look_at_shards, workspace=workspace, run_dir=str(tmp_path))
    why = "the weights, or the model's answers, are not finite"
    # The last value of rank 0 is of the parameter; that of rank 1 would be padding of a parameter three shorter.
    assert first == [True, False, False, True, why]
    assert second == [True, True, False, False, why]
    assert not checkpoints_dir(tmp_path).exists()
