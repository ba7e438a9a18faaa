"""Whom the others wait for, from what ranks last said."""

import dataclasses

from trainer.dist.blame import Beat, Heard, blame, sentence, silent, table

WAITING = Beat("step", 12, 40, 3, 61.0, 60.0, "distributed_c10d.py:10 all_reduce", True)


def heard(*ranks):
    return {rank: Heard(beat, ago_s) for rank, (beat, ago_s) in enumerate(ranks)}


def at(**changes):
    return dataclasses.replace(WAITING, **changes)


def test_nobody_is_blamed_while_those_behind_get_on():
    """Rank 0 does something for all, for longer than the others may wait."""
    assert blame(heard((at(age_s=1.0), 0.1), (at(age_s=500.0), 0.5)), 2.0) == []
    assert blame({}, 2.0) == []


def test_a_rank_behind_the_others_is_to_blame():
    ranks = heard((WAITING, 0.0), (at(mark=2, where="hook.py:3 forward"), 0.5), (WAITING, 0.1))
    assert blame(ranks, 2.0) == [1]
    assert sentence([1], ranks, 2.0) == (
        "Rank 1 has stood still for 62 s in phase step of step 12, at hook.py:3 forward (limit 60 s)"
    )


def test_a_phase_counts_for_more_than_a_place_in_it():
    ranks = heard((at(entry=41, mark=0), 0.0), (at(mark=9), 0.5))
    assert blame(ranks, 2.0) == [1]


def test_a_rank_behind_the_others_has_its_own_time():
    assert blame(heard((WAITING, 0.0), (at(mark=2, age_s=30.0), 0.5)), 2.0) == []


def test_a_silent_rank_is_to_blame_at_the_same_place():
    ranks = heard((WAITING, 0.0), (at(age_s=0.4), 60.8))
    assert blame(ranks, 2.0) == [1]
    assert sentence([1], ranks, 2.0).startswith(
        "Rank 1 has given no sign of life for 61 s, last in phase step of step 12 (stopped, "
    )


def test_a_silent_rank_is_to_blame_even_where_others_get_on():
    ranks = heard((at(age_s=0.1), 0.0), (at(age_s=0.4, entry=50), 60.8))
    assert blame(ranks, 2.0) == silent(ranks, 2.0) == [1]
    assert silent(heard((WAITING, 59.0)), 2.0) == []


def test_at_the_same_place_the_rank_outside_collectives_is_to_blame():
    ranks = heard((WAITING, 0.0), (at(where="hook.py:3 forward", waits=False), 0.5), (WAITING, 0.1))
    assert blame(ranks, 2.0) == [1]


def test_on_gpus_nobody_waits_in_python_and_the_odd_one_is_to_blame():
    usual = at(where="step.py:90 train_step", waits=False)
    odd = at(where="hook.py:3 forward", waits=False)
    assert blame(heard((usual, 0.0), (usual, 0.1), (odd, 0.2)), 2.0) == [2]
    both = heard((usual, 0.0), (odd, 0.2))
    assert blame(both, 2.0) == [0, 1], "of two nobody is the odd one"
    assert sentence([0, 1], both, 2.0) == "All 2 ranks have stood still in phase step of step 12 for 61 s"


def test_a_run_of_one_rank_names_its_place():
    ranks = heard((at(waits=False), 0.0))
    assert blame(ranks, 2.0) == [0]
    assert "Rank 0 has stood still for 61 s" in sentence([0], ranks, 2.0)
    assert table(ranks) == [
        "rank 0: step, step 12, place 40.3, 61.0 s, heard 0.0 s ago, at distributed_c10d.py:10 all_reduce"
    ]
