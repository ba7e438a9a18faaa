"""A small part of the kills of `python -m tests.dist.chaos`: a run goes on by itself, to the same bits."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.dist.blows import Kill
from tests.dist.chaos import EVERY, LINES, Range
from tests.dist.outside import NAMED
from tests.dist.session import config_of
from tests.dist.soak import Soak
from tests.helpers.ranks import ROOT, RankFailure
from trainer.checkpoint.layout import step_dir, step_of
from trainer.checkpoint.verify import newest_verified


@pytest.fixture(scope="module")
def fire(pool, workspace, tmp_path_factory):
    return Range(tmp_path_factory.mktemp("chaos"), workspace, pool(2))


@pytest.mark.parametrize(
    ("kind", "background", "shares"),
    [
        ("full ZeRO-2", True, (0.5, 0.7, 0.7, 0.4)),
        ("LoRA ZeRO-1", False, (0.5, 0.8, 0.6, 0.3)),
        ("full ZeRO-3", False, (0.6, 0.75, 0.4, 0.3)),
    ],
)
def test_a_rank_that_is_killed_at_any_call_or_write_of_a_save_costs_an_interval_at_most(
    fire, kind, background, shares
):
    """One run, killed at each of four starts: at a share of the calls or writes of a run that nobody touches."""
    fire.whole(kind, background)
    kills = []
    for share, (rank, where) in zip(
        shares, [(1, "call"), (0, "write"), (1, "write"), (0, "call")], strict=True
    ):
        total = fire.made[kind, background][rank][where]
        assert total > 10
        kills.append(Kill(kind, background, rank, "kill", where, 1 + int(share * (total - 1))))
    outcomes = fire.suffer_all(kills, len(fire.made))
    assert all(one.problem is None and one.was_hit for one in outcomes), outcomes
    assert outcomes[0].saved_step == 2, "the second start goes on from what the first one saved"
    assert outcomes[-1].lost_steps <= EVERY, outcomes


def test_a_signal_at_some_instant_costs_an_interval_at_most(fire):
    """One run, of whose starts two are ended by a kill and two by SIGTERM, which a rank answers by saving."""
    ends = [("term", 1, 200), ("kill", 0, 200), ("kill", 0, 700), ("term", 1, 700)]
    kills = [Kill("LoRA ZeRO-3", True, rank, how, "ms", at) for how, rank, at in ends]
    outcomes = fire.suffer_all(kills, 100)
    assert all(one.problem is None and one.lost_steps <= EVERY for one in outcomes), outcomes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "where", "at"),
    [("stop", "call", 6), ("pause", "write", 20), ("command", "ms", 300), ("launcher", "ms", 300)],
)
def test_a_rank_that_stops_and_a_command_or_launcher_that_dies_cost_an_interval_at_most(fire, how, where, at):
    outcome = fire.suffer(Kill("full ZeRO-2", True, 1, how, where, at), 200)
    assert outcome.problem is None and outcome.was_hit and outcome.lost_steps <= EVERY, outcome


def train_with_too_little_time(mesh: Any, workspace: str, run_dir: str, words: list[str]) -> None:
    """Be told to stop while the save of step 4 goes on, which never ends, and be killed soon after."""
    from trainer.run import loop, saver, training

    written, taken = saver.write_shards, loop.train_step

    def write(staging: Path, *arguments: Any) -> Any:
        if step_of(staging.with_name(staging.name[1:14])) == 4:
            time.sleep(9999)
        return written(staging, *arguments)

    def step(policy: Any, objective: Any, batch: Any, *arguments: Any) -> Any:
        if batch.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return taken(policy, objective, batch, *arguments)

    saver.write_shards, loop.train_step = write, step
    training.run_training(config_of(workspace, run_dir, *LINES, *words))


def test_what_the_attack_looks_for_is_what_a_run_says_of_a_rank_that_is_stopped():
    """It had missed a new sentence: of eleven ranks that were stopped and named it called seven unnamed."""
    said = "".join((ROOT / "trainer/dist" / name).read_text() for name in ("blame.py", "watch.py"))
    assert all(f"}} {words}" in said for words in NAMED)


def test_a_save_that_takes_longer_than_a_signal_leaves_time_for_is_as_if_it_had_not_begun(
    fire, workspace, tmp_path
):
    """The scheduler kills what has not ended in time: the checkpoint before it is gone on from."""
    whole, words = fire.whole("full ZeRO-2", True), fire.words("full ZeRO-2", True)
    with pytest.raises(RankFailure, match="died with -9") as caught:
        fire.pool.run(train_with_too_little_time, workspace=workspace, run_dir=str(tmp_path), words=words)
    assert "Stop asked (SIGTERM): once the checkpoint of step 4 is whole the run ends" in str(caught.value)
    assert newest_verified(tmp_path, pytest.fail)[0] == step_dir(tmp_path, 2)
    assert fire.train(tmp_path, "full ZeRO-2", True) == "finished"
    assert fire.difference(tmp_path, whole) is None


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_comes_to_the_same_bits(pool, workspace, tmp_path):
    """A few kills of what `python -m tests.dist.soak` does for hours."""
    fire = Range(tmp_path, workspace, pool(2), steps=24, every=4)
    fire.whole("full ZeRO-2", True)
    began = time.monotonic()
    fire.train(tmp_path / "timed", "full ZeRO-2", True)
    soak = Soak(fire, tmp_path, "full ZeRO-2", every_s=(time.monotonic() - began) / 2, seed=1)
    found = next(one for one in map(soak.run, range(20)) if one.problem or one.num_starts > 1)
    assert found.problem is None, found
    assert found.num_kills + found.num_terms > 0 and 0 < found.ettr < 1, found
