"""Chosen replay: exact shares, no repetition before a pool is exhausted, and the same again from what is kept."""

import copy
import functools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.tiny import SEQ_LEN, tiny_config
from trainer.checkpoint.state import TrainState
from trainer.config.data import Role, SourceConfig
from trainer.config.replay import RatioController, ReplayChoice
from trainer.errors import DataError
from trainer.mix.mixing import Mixing
from trainer.mix.replay_choice import Candidates, Choice, decide_choice


@functools.cache
def plain_config(folder):
    return tiny_config(folder)


def config_of(folder, num_steps=24, every=4, of=3, ratio=0.25):
    config = copy.deepcopy(plain_config(folder))
    roles = {"new": Role.target, "old": Role.replay, "older": Role.replay}
    config.data.sources = {
        name: SourceConfig(path=f"{name}.jsonl", role=role) for name, role in roles.items()
    }
    config.train.max_steps, config.train.max_epochs = num_steps, None
    config.replay.ratio, config.replay.choice = ratio, ReplayChoice.losing
    config.replay.choice_every, config.replay.choice_of = every, of
    return config


def stores_of(old=(30,) * 40, older=(50,) * 11):
    sizes = {"new": (SEQ_LEN - 1,) * 90, "old": old, "older": older}
    found = {}
    for name, targets in sizes.items():
        split = SimpleNamespace(
            pack_targets=np.array(targets, dtype=np.int32),
            pack_positions=np.full(len(targets), SEQ_LEN, dtype=np.int32),
        )
        found[name] = SimpleNamespace(train=split)
    return found


def mixing_of(config, stores, packs_per_step=4):
    return Mixing(config.data, config.replay, config.train, config.seed, stores, packs_per_step)


def losses(step, refs):
    """Return rises that depend on what is asked alone, as those of a deterministic model do."""
    return [((31 * ref.source + 17 * ref.pack + 7 * step) % 23) / 10 for ref in refs]


def draw(mixing, state, until=None, stops_at=()):
    """Run without a model, with the next step read before a decision is made; return the packs of every step."""
    mixing.to_score()
    drawn, made, ahead = [], [], None
    while state.step < (until or mixing.num_steps):
        refs = mixing.plan.packs_of_step(state.step) if ahead is None else ahead
        after = mixing.plan.cursor
        state.step, state.plan = state.step + 1, after.to_plain()
        if state.step < mixing.num_steps:
            ahead = mixing.plan.packs_of_step(state.step)
        drawn.append(refs)
        if mixing.choices.is_due(state):
            candidates = mixing.choices.candidates(state)
            rises = [losses(state.step, each.refs) for each in candidates]
            made += [
                (each, choice, known)
                for each, choice, known in zip(
                    candidates, mixing.choices.decide(state, candidates, rises), rises, strict=True
                )
            ]
    return drawn, made


some = st.lists(st.integers(1, SEQ_LEN), min_size=1, max_size=40)


@settings(max_examples=25, deadline=None)
@given(some, some, st.floats(0.05, 0.8), st.integers(1, 7), st.integers(2, 5), st.integers(1, 6))
def test_shares_stay_exact_and_no_pack_comes_again_before_its_pool_is_exhausted(
    tmp_path_factory, old, older, ratio, every, of, packs_per_step
):
    config = config_of(tmp_path_factory.getbasetemp(), 20, every, of, ratio)
    stores = stores_of(old, older)
    mixing, state = mixing_of(config, stores, packs_per_step), TrainState()
    drawn, _ = draw(mixing, state)
    replayed = wanted = 0.0
    passes = []
    for ref in (ref for refs in drawn for ref in refs):
        targets = int(list(stores.values())[ref.source].train.pack_targets[ref.pack])
        replayed += targets * (ref.source > 0)
        wanted += targets * ratio
        assert abs(replayed - wanted) <= SEQ_LEN / 2 + 1e-6
        if ref.source > 0:
            passes.append((ref.source, ref.pack))
    size = len(old) + len(older)
    for start in range(0, len(passes), size):
        once = passes[start : start + size]
        assert len(set(once)) == len(once), "a pack came again before its pool was exhausted"
    again = mixing_of(config, stores, packs_per_step)
    again.restore(TrainState(choices=state.choices))
    assert [again.plan.packs_of_step(step) for step in range(20)] == drawn, "recomputed from what is kept"


@settings(max_examples=25, deadline=None)
@given(some, some, st.floats(0.05, 0.8), st.integers(1, 7), st.integers(1, 19))
def test_a_run_that_goes_on_from_any_step_decides_and_draws_the_same(
    tmp_path_factory, old, older, ratio, every, stop
):
    config = config_of(tmp_path_factory.getbasetemp(), 20, every, 3, ratio)
    stores = stores_of(old, older)
    whole, state = mixing_of(config, stores), TrainState()
    drawn, _ = draw(whole, state)
    stopped = TrainState()
    first, _ = draw(mixing_of(config, stores), stopped, until=stop)
    assert first == drawn[:stop]
    resumed = mixing_of(config, stores)
    resumed.restore(stopped)
    rest, _ = draw(resumed, stopped)
    assert rest == drawn[stop:] and stopped.choices == state.choices


def test_what_lost_most_of_the_next_packs_comes_next(tmp_path):
    """Worked out: 24 steps of 4 packs, a quarter of the tokens; the expected packs of four steps, times three."""
    config = config_of(tmp_path)
    stores = stores_of((SEQ_LEN - 1,) * 200, (SEQ_LEN - 1,) * 40)
    mixing, state = mixing_of(config, stores), TrainState()
    drawn, made = draw(mixing, state)
    plain = mixing_of(config_of(tmp_path), stores)
    assert drawn[:5] == [plain.plan.packs_of_step(step) for step in range(5)], "nothing is known before"
    assert [choice.step for _, choice, _ in made] == [4, 8, 12, 16, 20]
    for number, (candidates, choice, rises) in enumerate(made):
        first = choice.step + 1
        steps = drawn[first : (first + 4) if number < 4 else 24]
        came = [ref[:2] for refs in steps for ref in refs if ref.source > 0]
        best = sorted(range(len(rises)), key=lambda i: (-rises[i], candidates.numbers[i]))
        assert len(rises) == 3 * choice.num_wanted and choice.num_wanted == len(steps)
        assert {candidates.refs[i][:2] for i in best[: len(came)]} == set(came)
        top = [rises[i] for i in best[: choice.num_wanted]]
        assert choice.rise_chosen == pytest.approx(sum(top) / len(top))
        assert choice.rise_candidates == pytest.approx(sum(rises) / len(rises))
        assert choice.rise_candidates < choice.rise_chosen
    skipped = set(made[0][0].numbers) - set(made[0][1].packs[: made[0][1].num_wanted])
    assert skipped & set(made[1][0].numbers) == skipped, "what stays undrawn is a candidate again"


def test_of_equal_rises_the_lower_number_is_chosen_and_no_number_is_the_worst():
    found = Candidates("old", 10, 2, [7, 3, 5, 1], [])
    assert decide_choice(4, found, [0.5, 0.2, 0.5001, 0.5002]).packs == [5, 1, 7, 3]
    nan = decide_choice(4, found, [float("nan"), 9.0, 0.1, 0.2])
    assert nan.packs == [7, 3, 1, 5] and np.isnan(nan.rise_chosen)


def test_nothing_is_chosen_of_packs_that_are_all_drawn(tmp_path):
    """A pool of 5, and 4 packs are drawn between choices: one of the next pass is chosen, out of the first three."""
    config = config_of(tmp_path, 24, 4, 3, 0.25)
    mixing, state = mixing_of(config, stores_of((SEQ_LEN - 1,) * 3, (SEQ_LEN - 1,) * 2)), TrainState()
    _, made = draw(mixing, state, until=5)
    (candidates, choice, _), *_ = made
    # Five were drawn before step 5, or four: what is left of the pass is drawn whatever was lost on it.
    position = mixing.choices._after.cursor.positions[1]
    left = 5 - position % 5
    assert choice.begin == (position if left > 4 else position + left)
    assert choice.num_wanted == (4 if left > 4 else 4 - left)
    assert len(candidates.numbers) == min(3 * choice.num_wanted, 5)


def test_a_pool_smaller_than_the_candidates_gives_all_it_has(tmp_path):
    config = config_of(tmp_path, 24, 8, 5, 0.5)
    mixing, state = mixing_of(config, stores_of((SEQ_LEN - 1,) * 30, (SEQ_LEN - 1,) * 10)), TrainState()
    _, made = draw(mixing, state, until=9)
    (candidates, choice, _), *_ = made
    assert choice.num_wanted == 16
    (said,) = mixing.to_score()[1]
    assert said.startswith(
        "replay.choice=losing asks for 80 candidates at a time, and old+older has 40 packs: all"
    )
    assert choice.num_candidates == 40 - mixing.choices._after.cursor.positions[1] < 5 * 16
    assert len(candidates.numbers) == choice.num_candidates


def test_only_the_beginning_of_a_large_pool_is_asked_of_the_base_and_chosen_from(tmp_path):
    """Worked out: a quarter of 24 steps of 4 packs is 24 packs; three times 4 more are candidates at the end."""
    mixing = mixing_of(config_of(tmp_path), stores_of((SEQ_LEN - 1,) * 900, (SEQ_LEN - 1,) * 100))
    asked, said = mixing.to_score()
    assert said == []
    assert sum(map(len, asked.values())) == 24 + 3 * 4
    drawn, _ = draw(mixing, TrainState())
    came = {ref[:2] for refs in drawn for ref in refs if ref.source > 0}
    assert came <= {(source, pack) for source, packs in asked.items() for pack in packs.tolist()}


def test_the_base_may_be_asked_about_any_pack_for_kl(tmp_path):
    config = config_of(tmp_path)
    mixing = mixing_of(config, stores_of())
    assert {source: len(packs) for source, packs in mixing.replay_to_draw().items()} == {1: 40, 2: 11}


def test_choices_of_another_pool_or_of_packs_that_are_not_there_are_refused(tmp_path):
    mixing = mixing_of(config_of(tmp_path), stores_of())
    good = Choice(4, "old+older", 5, [0, 50], 4, 12, 0.5, 0.1)
    mixing.restore(TrainState(choices=[good.to_plain()]))
    for changed in ({"packs": [51]}, {"packs": [-1]}, {"pool": "other"}):
        with pytest.raises(DataError, match=r"choices? of replay"):
            mixing.restore(TrainState(choices=[good.to_plain() | changed]))


def test_a_higher_ratio_than_was_expected_draws_the_next_by_rise_and_then_the_permutation(tmp_path):
    config = config_of(tmp_path, 24, 4, 2, 0.25)
    config.replay.controller = RatioController.hold
    config.replay.max_ratio = 0.9
    stores = stores_of((SEQ_LEN - 1,) * 200, (SEQ_LEN - 1,) * 40)
    mixing, state = mixing_of(config, stores), TrainState()
    draw(mixing, state, until=5)
    (kept,) = [Choice(**found) for found in state.choices]
    state.ratio_changes = [[6, 0.9]]
    mixing.restore(state)
    came = [ref for step in range(5, 9) for ref in mixing.plan.packs_of_step(step) if ref.source > 0]
    order = next(iter(mixing.plan.chosen_orders.values()))
    assert [ref[:2] for ref in came[:8]] == [order.ref_of(number, 0)[:2] for number in kept.packs]
    fresh = mixing_of(config_of(tmp_path), stores)
    base = next(iter(fresh.plan.chosen_orders.values()))
    taken = {order.ref_of(number, 0)[:2] for number in kept.packs} | {
        base.ref(position)[:2] for position in range(kept.begin)
    }
    rest = [base.ref(position)[:2] for position in range(40) if base.ref(position)[:2] not in taken]
    assert len(came) > 10 and [ref[:2] for ref in came[8:]] == rest[: len(came) - 8]


def test_more_passes_than_a_source_allows_are_refused_when_replay_is_chosen_too(tmp_path):
    """A quarter of 24 steps of 4 packs, at 63 tokens, is 24 packs of about 30 to 50: over half a pass of 51."""
    config = config_of(tmp_path)
    config.data.sources["old"].max_epochs = 0.2
    with pytest.raises(
        DataError, match=r"`data.sources.old.max_epochs` must be at least 0\.\d\d for this run"
    ):
        mixing_of(config, stores_of())
    config.data.sources["old"].max_epochs = 2.0
    assert mixing_of(config, stores_of()).choices is not None
