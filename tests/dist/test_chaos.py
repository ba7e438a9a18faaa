"""A small part of the kills of `python -m tests.dist.chaos`: a run goes on by itself, to the same bits."""

from __future__ import annotations

import time

import pytest

from tests.dist.chaos import EVERY, Kill, Range
from tests.dist.soak import Soak

NUM_CALLS = 4
"""Calls in turn that each kind is killed at, spread over all it makes."""


@pytest.fixture(scope="module")
def fire(pool, workspace, tmp_path_factory):
    return Range(tmp_path_factory.mktemp("chaos"), workspace, pool(2))


@pytest.mark.parametrize(
    ("kind", "background"), [("full ZeRO-2", True), ("LoRA ZeRO-1", False), ("full ZeRO-3", False)]
)
def test_a_rank_that_is_killed_at_any_call_of_a_save_costs_an_interval_at_most(fire, kind, background):
    fire.whole(kind, background)
    totals = fire.num_calls[kind, background]
    assert max(totals) > 20
    for index in range(NUM_CALLS):
        at = 1 + index * (totals[index % 2] - 1) // (NUM_CALLS - 1)
        outcome = fire.suffer(Kill(kind, background, index % 2, "call", at), index)
        assert outcome.problem is None and outcome.was_hit and outcome.lost_steps <= EVERY, outcome


@pytest.mark.parametrize(("how", "rank"), [("term", 1), ("kill", 0)])
def test_a_signal_at_some_instant_costs_an_interval_at_most(fire, how, rank):
    for index, at in enumerate((200, 700)):
        outcome = fire.suffer(Kill("LoRA ZeRO-3", True, rank, how, at), 100 + index)
        assert outcome.problem is None and outcome.lost_steps <= EVERY, outcome


def test_a_run_that_is_killed_again_and_again_comes_to_the_same_bits(pool, workspace, tmp_path):
    """A few kills of what `python -m tests.dist.soak` does for hours."""
    fire = Range(tmp_path, workspace, pool(2), steps=24, every=4)
    fire.whole("full ZeRO-2", True)
    began = time.monotonic()
    fire.train(tmp_path / "timed", "full ZeRO-2", True, None)
    soak = Soak(fire, tmp_path, "full ZeRO-2", every_s=(time.monotonic() - began) / 2, seed=1)
    found = next(one for one in map(soak.run, range(20)) if one.problem or one.num_starts > 1)
    assert found.problem is None, found
    assert found.num_kills + found.num_terms > 0 and 0 < found.ettr < 1, found
