"""Rung 4: a resumed run is the run that never stopped, bit for bit; what cannot be resumed is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.dist.session import config_of, session_of
from tests.helpers.committed import commit
from trainer.checkpoint.layout import FINGERPRINT, STATE, step_dir
from trainer.checkpoint.manifest import read_manifest
from trainer.errors import CheckpointError, SelfCheckError


def config_for(workspace: str, run_dir: Path, stage: int, more: list[str] | None = None) -> Any:
    # Attention dropout, so that a random number generator that is not restored changes the losses.
    overrides = [
        f"model.path={workspace}/dropout",
        f"zero.stage={stage}",
        "zero.dtype=bf16",
        "train.max_steps=6",
        "checkpoint.every_steps=3",
    ]
    if stage == 0:
        overrides.append("train.micro_batch_size=4")
    return config_of(workspace, run_dir, *overrides, *(more or []))


def train_twice(
    mesh: Any, workspace: str, folder: str, stages: list[int], overrides: list[str] | None = None
) -> None:
    """Train six steps; then again from a copy of the checkpoint after three."""
    from trainer.run import training

    for stage in stages:
        whole, resumed = Path(folder) / f"whole-{stage}", Path(folder) / f"resumed-{stage}"
        assert training.run_training(config_for(workspace, whole, stage, overrides)).value == "finished"
        if mesh.is_first:
            shutil.copytree(step_dir(whole, 3), step_dir(resumed, 3))
        mesh.barrier()
        assert training.run_training(config_for(workspace, resumed, stage, overrides)).value == "finished"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(run_dir: Path) -> dict[int, tuple[float, float]]:
    records = [r for r in lines(run_dir / "metrics.jsonl") if "loss" in r]
    return {r["step"]: (r["loss"], r["grad_norm"]) for r in records}


def assert_bitwise(whole: Path, resumed: Path, seen: int | None = 6 * 4 * 64) -> None:
    before, after = losses(whole), losses(resumed)
    assert sorted(before) == [1, 2, 3, 4, 5, 6] and sorted(after) == [4, 5, 6]
    assert {step: before[step] for step in after} == after
    one, other = (json.loads((step_dir(r, 6) / STATE).read_text()) for r in (whole, resumed))
    assert (one.pop("attempts"), other.pop("attempts")) == (1, 2)
    assert one == other
    assert len(one["data_digest"]) == 32 and seen in (None, one["tokens_seen"])
    assert contents(step_dir(whole, 6)) == contents(step_dir(resumed, 6))


def contents(folder: Path) -> dict[str, str]:
    """Return the digest of every file of a checkpoint."""
    files = read_manifest(folder).files
    found = {name: digest for name, (_, digest) in files.items() if name != STATE}
    assert {name.split("/")[0].split("-rank")[0] for name in found} >= {"shards", "rng", FINGERPRINT}
    return found


def test_resume_after_three_steps_is_bitwise_identical_at_two_ranks(pool, workspace, tmp_path):
    """Losses differ from the first resumed step: weights, optimizer moments or generators are not restored.
    Only the data digest differs: the loader starts at another pack. Only the files differ: state that later
    steps will need is lost.
    """
    pool(2).run(train_twice, workspace=workspace, folder=str(tmp_path), stages=[1, 2, 3])
    for stage in (1, 2, 3):
        assert_bitwise(tmp_path / f"whole-{stage}", tmp_path / f"resumed-{stage}")


OFFLOADED = ["zero.offload_optimizer=cpu"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "overrides"),
    [
        (0, ["zero.dtype=fp32", "train.micro_batch_size=2"]),
        (2, ["zero.dtype=fp32"]),
        (3, ["zero.dtype=fp32"]),
        (2, OFFLOADED),
        (3, [*OFFLOADED, "zero.offload_param=cpu"]),
        (1, ["model.path={workspace}/tied"]),
        (3, ["model.path={workspace}/tied"]),
        (1, ["tune.method=lora"]),
        (3, ["tune.method=lora"]),
        (2, ["tune.method=lora", "model.path={workspace}/tied"]),
    ],
)
def test_resume_is_bitwise_identical_in_fp32_offloaded_tied_and_with_frozen_weights(
    pool, workspace, tmp_path, stage, overrides
):
    """As above, for what is collected and taken over on paths of its own."""
    words = [word.format(workspace=workspace) for word in overrides]
    pool(2).run(train_twice, workspace=workspace, folder=str(tmp_path), stages=[stage], overrides=words)
    assert_bitwise(tmp_path / f"whole-{stage}", tmp_path / f"resumed-{stage}")


def test_resume_at_stage_0_is_bitwise_identical_and_other_runs_are_refused(pool, workspace, tmp_path):
    """As above; at stage 0 every rank holds all."""
    pool(1).run(train_twice, workspace=workspace, folder=str(tmp_path), stages=[0])
    assert_bitwise(tmp_path / "whole-0", tmp_path / "resumed-0")
    answers = pool(1).run(refusals, workspace=workspace, run_dir=str(tmp_path / "whole-0"))[0]
    assert "with the data that saved it" in answers["data"] and "other" in answers["data"]
    assert "with the configuration that saved it" in answers["config"]
    for kind in ("data", "config"):
        assert answers[kind].startswith("CheckpointError")
        assert "or give another run_dir." in answers[kind]
    assert answers["weights"].startswith("CheckpointError")
    assert "must answer as the saved one did" in answers["weights"]
    assert "begin at step 0 on purpose with checkpoint.resume=false" in answers["weights"]


def saver_of(session: Any, **changes: Any) -> Any:
    """Return what saves and resumes a session, or one with other data or another configuration."""
    from trainer.run.training import build_saver

    return build_saver(dataclasses.replace(session, **changes), None)


def refusal_of(saver: Any) -> str:
    with pytest.raises((CheckpointError, SelfCheckError)) as caught:
        saver.resume(goes_on=True)
    return f"{type(caught.value).__name__}: {caught.value}"


def refusals(mesh: Any, workspace: str, run_dir: str) -> dict[str, str]:
    config = config_for(workspace, Path(run_dir), 0)
    answers = {}
    with session_of(config) as session:
        stores = {name: dataclasses.replace(s, digest="other") for name, s in session.stores.items()}
        answers["data"] = refusal_of(saver_of(session, stores=stores))
        other = dataclasses.replace(config, seed=5)
        answers["config"] = refusal_of(saver_of(session, config=other))
        assert saver_of(session).resume(goes_on=True).step == 6
        commit_other_weights(Path(run_dir), mesh)
        for step in (3, 6):
            shutil.rmtree(step_dir(Path(run_dir), step))
        answers["weights"] = refusal_of(saver_of(session))
    return answers


def commit_other_weights(run_dir: Path, mesh: Any) -> None:
    """Commit a checkpoint that verifies, whose weights are not those that its fingerprint saw."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    from trainer.checkpoint.commit import seal
    from trainer.checkpoint.state import read_state, write_state

    source = step_dir(run_dir, 6)

    def write(staging: Path) -> list[Any]:
        shutil.copytree(source, staging, dirs_exist_ok=True)
        path = staging / "shards" / "rank-00000.safetensors"
        with safe_open(path, framework="pt") as file:
            facts = file.metadata()
        tensors = load_file(path)
        tensors["weight/lm_head.weight@0"] *= 1.5
        save_file(tensors, path, metadata=facts)
        state = read_state(staging / STATE)
        state.step = state.plan["step"] = 7
        write_state(staging / STATE, state)
        return [seal(f) for f in staging.rglob("*") if f.is_file() and f.name != "manifest.json"]

    commit(run_dir, dataclasses.replace(read_manifest(source), step=7, files={}), write, mesh)
