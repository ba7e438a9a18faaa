"""Files of a run that hold what no run writes: resume falls back, `verify` and `status` name them; no traceback."""

from __future__ import annotations

import json
import random
import shutil
import traceback
from pathlib import Path
from typing import Any

import pytest

from launch.status import run_status
from tests.dist.session import session_of, train_frozen
from tests.dist.test_resealed import seal_anew
from tests.dist.test_resume import config_for, saver_of
from tests.helpers.damage import damage
from tests.helpers.odd_json import odd_json
from trainer.checkpoint.layout import FINGERPRINT, MANIFEST, STATE, checkpoints_dir, rng_file, step_dir
from trainer.checkpoint.manifest import read_manifest
from trainer.cli import run_command
from trainer.errors import CheckpointError, TrainerError

IN_CHECKPOINT = (STATE, STATE, rng_file(0), MANIFEST, FINGERPRINT)
"""The state is tried twice as often: most of what a run goes by is in it."""
BESIDE = ("ledger.jsonl", "metrics.jsonl", "provenance.json", "config.yaml", "forgetting.json")
LAST = 6


def odd_checkpoint(run: Path, whole: Path, seed: int) -> str:
    """Make a file of the last checkpoint odd, as if that had been written; return which."""
    rng = random.Random(seed)
    name = rng.choice(IN_CHECKPOINT)
    shutil.rmtree(checkpoints_dir(run))
    shutil.copytree(whole, checkpoints_dir(run))
    place = step_dir(run, LAST) / name
    found = place.read_bytes()
    is_json = name != FINGERPRINT and rng.random() < 0.8
    place.write_bytes(odd_json(found, rng) if is_json else damage(found, rng))
    if name != MANIFEST:
        seal_anew(step_dir(run, LAST))
    elif rng.random() < 0.7:
        try:  # its own seal is right, too
            outer = json.loads(place.read_bytes())
            seal_manifest(place, outer["manifest"])
        except Exception:  # it is no longer one
            pass
    return name


def seal_manifest(place: Path, record: Any) -> None:
    from trainer.checkpoint.manifest import _seal

    place.write_text(json.dumps({"sha256": _seal(record), "manifest": record}))


def resume_from_odd_files(mesh: Any, workspace: str, run_dir: str, seeds: list[int]) -> list[str]:
    """Train; then go on from checkpoints of which a file is odd. Return what went wrong, with the seed."""
    from trainer.run import training

    run, problems = Path(run_dir), []
    config = config_for(workspace, run, 0)
    assert training.run_training(config).value == "finished"
    whole = run.with_name("whole")
    shutil.copytree(checkpoints_dir(run), whole)
    with session_of(config) as session:
        for seed in seeds:
            name = odd_checkpoint(run, whole, seed)
            try:
                step = saver_of(session).resume(goes_on=True).step
                if step not in (3, 6):
                    problems.append(f"{seed} {name}: went on from {step}")
            except CheckpointError as error:
                if name not in str(error) and str(step_dir(run, LAST).name) not in str(error):
                    problems.append(f"{seed} {name}: no name in '{error}'")
            except Exception:
                problems.append(f"{seed} {name}: {traceback.format_exc()[-900:]}")
    return problems


@pytest.mark.parametrize("seeds", [range(40), pytest.param(range(40, 500), marks=pytest.mark.slow)])
def test_a_run_goes_on_from_the_checkpoint_before_one_that_holds_what_no_run_writes(
    pool, workspace, tmp_path, seeds
):
    (problems,) = pool(1).run(
        resume_from_odd_files, workspace=workspace, run_dir=str(tmp_path / "run"), seeds=list(seeds)
    )
    assert problems == []


@pytest.fixture(scope="module")
def trained(pool: Any, workspace: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("odd") / "run"
    run_dir.mkdir()
    words = ["train.max_steps=6", "checkpoint.every_steps=3", "zero.stage=0"]
    pool(1).run(train_frozen, workspace=workspace, run_dir=str(run_dir), words=words)
    return run_dir


@pytest.mark.parametrize("seeds", [range(3), pytest.param(range(3, 60), marks=pytest.mark.slow)])
def test_verify_and_status_tell_of_odd_files_in_sentences(trained, tmp_path, capsys, seeds):
    whole = tmp_path / "whole"
    shutil.copytree(checkpoints_dir(trained), whole)
    problems = []
    for seed in seeds:
        rng, run = random.Random(f"beside {seed}"), tmp_path / str(seed)
        shutil.copytree(trained, run)
        if rng.random() < 0.5:
            name = odd_checkpoint(run, whole, seed)
        else:
            name = rng.choice([name for name in BESIDE if (run / name).is_file()])
            found = (run / name).read_bytes()
            is_json = name.endswith(".json") and rng.random() < 0.8
            (run / name).write_bytes(odd_json(found, rng) if is_json else damage(found, rng))
        for command in (lambda run=run: run_command(["verify", str(run)]), lambda run=run: run_status(run)):
            try:
                command()
            except TrainerError as error:
                if name not in str(error):
                    problems.append(f"{seed} {name}: no name in '{error}'")
            except Exception:
                problems.append(f"{seed} {name}: {traceback.format_exc()[-900:]}")
        said = capsys.readouterr()
        if "Traceback" in said.out + said.err:
            problems.append(f"{seed} {name}: {said.err[-900:]}")
        shutil.rmtree(run)
    assert problems == []
    assert read_manifest(step_dir(trained, LAST)).step == LAST
