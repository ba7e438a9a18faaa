"""Saves beside the training: the same checkpoints as saves that all wait for, and a run that outlives a full disk."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.dist.session import config_of
from tests.dist.test_resume import contents
from trainer.checkpoint.layout import step_dir
from trainer.checkpoint.verify import inspect
from trainer.config.train import CheckpointConfig

WORDS = [
    *("zero.dtype=bf16", "train.max_steps=8", "checkpoint.every_steps=2", "checkpoint.keep_last=9"),
    *("evaluate.forgetting=false", "data.max_validation_packs=2"),
]


def train_with_saves(
    mesh: Any, workspace: str, folder: str, stage: int, words: list[str], full: dict[int, int], slow_s: float
) -> list[dict[str, Any]]:
    """Train with writes that take long, and on one rank fail at some steps; return what the ledger says of saves.

    Args:
        full: Rank by step; what is its first save of a step fails there.
    """
    from trainer.run import saver, training

    whole = saver.write_shards
    left = {step: rank for step, rank in full.items() if rank == mesh.rank}

    def slowly(staging: Path, *arguments: Any) -> Any:
        time.sleep(slow_s)
        step = int(staging.name.split("-")[1][:8])
        if left.pop(step, None) is not None:
            raise OSError(28, "No space left on device")
        return whole(staging, *arguments)

    saver.write_shards = slowly
    try:
        config = config_of(workspace, folder, f"zero.stage={stage}", *WORDS, *words)
        assert training.run_training(config).value == "finished"
    finally:
        saver.write_shards = whole
    rows = (Path(folder) / "ledger.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, rows) if row["event"] in ("saved", "not_saved")]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "words"), [(2, []), (3, ["tune.method=lora", "tune.r=4"])])
def test_checkpoints_written_beside_the_training_are_those_that_it_waits_for(
    pool, workspace, tmp_path, stage, words
):
    """Other bits: what is written changed meanwhile."""
    events = {}
    for name, slow_s in (("false", 0.0), ("true", 0.4)):
        events[name] = pool(2).run(
            train_with_saves,
            workspace=workspace,
            folder=str(tmp_path / name),
            stage=stage,
            words=[*words, f"checkpoint.background={name}"],
            full={},
            slow_s=slow_s,
        )[0]
    for step in (2, 4, 6, 8):
        here, there = (step_dir(tmp_path / name, step) for name in ("false", "true"))
        assert contents(here) == contents(there) and inspect(there)[1] is None
    for name, saved in events.items():
        assert [row["step"] for row in saved] == [2, 4, 6, 8], name
    keys = ("data_digest", "tokens_seen", "targets_by_source", "best")
    assert [[row[key] for key in keys] for row in events["false"]] == [
        [row[key] for key in keys] for row in events["true"]
    ]
    assert all(row["stall_s"] <= row["seconds"] for row in events["true"])


def test_a_run_outlives_a_disk_that_is_full_for_a_while_on_one_rank(pool, workspace, tmp_path):
    """Training goes on with a sentence, tries again soon, and what is half written is gone."""
    rows = pool(2).run(
        train_with_saves,
        workspace=workspace,
        folder=str(tmp_path / "run"),
        stage=1,
        words=[],
        full={2: 1, 4: 0},
        slow_s=0.0,
    )[0]
    told = [(row["event"], row["step"]) for row in rows]
    assert ("not_saved", 2) in told and ("not_saved", 4) in told
    saved = [step for event, step in told if event == "saved"]
    assert saved[-1] == 8 and saved == sorted(saved) and {6, 8} <= set(saved)
    failed = next(row for row in rows if row["event"] == "not_saved")
    assert "No space left on device" in failed["why"] and "tried again after step" in failed["why"]
    left = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert left == ["latest", *(f"step-{step:08d}" for step in saved)]


def test_the_last_save_that_cannot_be_written_is_an_error(pool, workspace, tmp_path):
    from tests.helpers.ranks import RankFailure

    with pytest.raises(RankFailure, match="No space left on device"):
        pool(2).run(
            train_with_saves,
            workspace=workspace,
            folder=str(tmp_path / "run"),
            stage=1,
            words=[],
            full={8: 1},
            slow_s=0.0,
        )


def train_by_time(mesh: Any, workspace: str, folder: str, first_s: float) -> list[int]:
    """Train with saves by time, of which the first is due after so long; return the steps that were saved."""
    from trainer.run import save_clock, training

    words = ["checkpoint.every_steps=null", "checkpoint.background=false", "train.max_steps=5"]
    whole, save_clock.FIRST_S = save_clock.FIRST_S, first_s
    try:
        config = config_of(workspace, folder, *words, "evaluate.forgetting=false")
        assert training.run_training(config).value == "finished"
    finally:
        save_clock.FIRST_S = whole
    rows = map(json.loads, (Path(folder) / "ledger.jsonl").read_text().splitlines())
    return [row["step"] for row in rows if row["event"] == "saved"]


def test_a_run_without_a_number_of_steps_saves_by_time(pool, workspace, tmp_path):
    """The first save is due at once here, and the next a minute later at the earliest, when the run is over."""
    assert CheckpointConfig().every_steps is None, "by time, unless somebody says otherwise"
    for first_s, saved in ((1e-6, [1, 5]), (300.0, [5])):
        folder = str(tmp_path / str(first_s))
        found = pool(2).run(train_by_time, workspace=workspace, folder=folder, first_s=first_s)
        assert found == [saved, saved]


def room(mesh: Any, workspace: str, folder: str, left: int) -> tuple[bool, int]:
    """Return whether there is room for copies with so much memory left, and the bytes of what one save wrote here."""
    from tests.dist.session import session_of, take_steps
    from tests.dist.test_resume import saver_of
    from trainer.checkpoint.state import TrainState
    from trainer.run import saver

    whole = saver.bytes_available
    with session_of(config_of(workspace, folder, "zero.stage=2", *WORDS)) as session:
        own = saver_of(session)
        own.resume(goes_on=True)
        try:
            saver.bytes_available = lambda: left
            has_room = own.has_room_for_copy()
        finally:
            saver.bytes_available = whole
        take_steps(session, 1)
        assert own.save(TrainState(step=1)) is None
    mesh.barrier()
    return has_room, sum(path.stat().st_size for path in (step_dir(Path(folder), 1) / "shards").iterdir())


def test_a_node_without_room_for_what_all_its_ranks_copy_saves_at_once(pool, workspace, tmp_path):
    """Before the first step, when the optimizer has no moments yet."""
    much, size = pool(2).run(room, workspace=workspace, folder=str(tmp_path / "much"), left=10**9)[0]
    assert much and size > 10**5
    answers = pool(2).run(room, workspace=workspace, folder=str(tmp_path / "few"), left=size)
    assert [answer[0] for answer in answers] == [False, False]
    assert pool(2).run(room, workspace=workspace, folder=str(tmp_path / "enough"), left=round(1.3 * size))[0][
        0
    ]
