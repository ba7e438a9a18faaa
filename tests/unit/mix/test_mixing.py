"""What a run draws from: roles and weights become pools, and repetition is foreseen and refused."""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.helpers.tiny import SEQ_LEN, tiny_config
from trainer.checkpoint.state import TrainState
from trainer.config.data import Role, SourceConfig
from trainer.config.replay import RatioController, RatioSchedule
from trainer.errors import DataError
from trainer.mix.mixing import Mixing
from trainer.mix.plan import Cursor

NUM_PACKS = {"new": 300, "more": 100, "old": 40, "older": 10, "general": 0}
ROLES = {
    "new": Role.target,
    "more": Role.target,
    "old": Role.replay,
    "older": Role.replay,
    "general": Role.probe,
}


@pytest.fixture
def config(tmp_path):
    config = tiny_config(tmp_path)
    config.data.sources = {
        name: SourceConfig(path=f"{name}.jsonl", role=role) for name, role in ROLES.items()
    }
    config.train.max_steps, config.train.max_epochs = 50, None
    return config


def stores():
    """Return what the mixing reads of stores; replay packs hold half as many targets."""
    return {
        name: SimpleNamespace(
            train=SimpleNamespace(
                pack_targets=np.full(
                    count, SEQ_LEN - 4 if ROLES[name] is Role.target else 30, dtype=np.int32
                ),
                pack_positions=np.full(count, SEQ_LEN, dtype=np.int32),
            )
        )
        for name, count in NUM_PACKS.items()
    }


def mix(config, packs_per_step=8):
    return mixing_of(config, stores(), packs_per_step)


def mixing_of(config, kept, packs_per_step):
    return Mixing(config.data, config.replay, config.train, config.seed, kept, packs_per_step)


def drawn(mixing, state=None):
    """Draw the whole run and return supervised targets by source number."""
    counts = {}
    targets = [store.train.pack_targets for store in stores().values()]
    for step in range(mixing.num_steps):
        for ref in mixing.plan.packs_of_step(step):
            counts[ref.source] = counts.get(ref.source, 0) + int(targets[ref.source][ref.pack])
    return counts


def test_sources_without_weights_are_one_pool_a_role(config):
    assert [pool.name for pool in mix(config).plan.pools] == ["new+more", "old+older"]


def test_sources_with_weights_are_pools_of_their_own(config):
    config.data.sources["new"].weight, config.data.sources["more"].weight = 3.0, 1.0
    mixing = mix(config)
    assert [pool.name for pool in mixing.plan.pools] == ["new", "more", "old+older"]
    counts = drawn(mixing)
    assert counts[0] / (counts[0] + counts[1]) == pytest.approx(0.75, abs=0.02)


def test_the_passes_foreseen_are_those_that_come(config):
    """Replay packs are half as full here, so counting packs instead of tokens would be far off."""
    config.replay.ratio = 0.25
    mixing = mix(config)
    foreseen = {row.pool.name: row for row in mixing.passes(mixing.mean_ratio)}
    counts = drawn(mixing)
    replayed = counts[2] + counts[3]
    assert foreseen["old+older"].targets == pytest.approx(replayed, rel=0.01)
    assert foreseen["old+older"].epochs == pytest.approx(replayed / (50 * 30), rel=0.01)
    assert foreseen["new+more"].targets == pytest.approx(counts[0] + counts[1], rel=0.01)
    assert replayed / sum(counts.values()) == pytest.approx(0.25, abs=0.002)


def shown(mixing):
    """Return the table of a mixing: its title and its columns share, tokens and passes."""
    table = mixing.table()
    return table.title, [list(column.cells) for column in table.columns[2:]]


@pytest.mark.parametrize(("max_steps", "weights"), [(2, (None, None)), (50, (3.0, 1.0))])
def test_the_table_tells_the_tokens_that_come_and_the_share_that_was_asked(config, max_steps, weights):
    config.replay.ratio, config.train.max_steps = 0.25, max_steps
    config.data.sources["new"].weight, config.data.sources["more"].weight = weights
    title, (shares, tokens, _) = shown(mixing := mix(config, packs_per_step=3))
    counts = drawn(mixing)
    by_pool = [sum(counts.get(source, 0) for source in pool.sources) for pool in mixing.plan.pools]
    assert title == f"Mixture over {max_steps} steps" and tokens == [f"{count:,}" for count in by_pool]
    assert [share.split()[0] for share in shares] == [f"{count / sum(by_pool):.1%}" for count in by_pool]
    assert ("(25.0% asked)" in shares[-1]) == (max_steps == 2)
    # 6 packs: one is a sixth of the tokens.
    why = "Packs are drawn whole, and the run draws 6 packs: one more or less of replay is about 16.7% of the tokens."
    assert (why in str(mixing.table().caption)) == (max_steps == 2)


def test_a_table_that_is_reckoned_says_so(config, monkeypatch):
    monkeypatch.setattr("trainer.mix.mixing.MOST_PLANNED", 399)
    assert shown(mix(config))[0] == "Mixture over 50 steps, about"


def test_additive_replay_keeps_the_target_tokens_and_lengthens_the_run(config):
    config.replay.ratio = 0.375
    assert mix(config).num_steps == 50
    config.replay.additive = True
    assert mix(config).num_steps == 80


def test_epochs_are_counted_over_target_packs(config):
    config.train.max_steps, config.train.max_epochs = None, 2.0
    assert mix(config).num_steps == 2 * 400 // 8


def test_the_ratio_follows_its_schedule_over_the_run(config):
    config.replay.ratio, config.replay.schedule, config.replay.end_ratio = 0.4, RatioSchedule.linear, 0.0
    mixing = mix(config)
    assert mixing.ratio_of_step(0) == 0.4 and mixing.ratio_of_step(25) == pytest.approx(0.2)
    assert mixing.mean_ratio == pytest.approx(0.2)


def test_a_source_is_refused_when_the_run_would_repeat_it_too_often(config):
    config.replay.ratio = 0.5
    config.data.sources["old"].max_epochs = 1.0
    with pytest.raises(
        DataError, match=r"`data.sources.old.max_epochs` must be at least \d+\.\d\d for this run"
    ):
        mix(config)
    config.replay.ratio = 0.01
    mix(config)


def test_a_controller_may_not_need_more_replay_than_there_is(config):
    config.replay.ratio, config.replay.controller = 0.01, RatioController.hold
    config.data.sources["old"].max_epochs = 1.0
    with pytest.raises(DataError, match=r"old\.max_epochs"):
        mix(config)
    config.replay.max_ratio = 0.02
    mix(config)


def test_the_controllers_decision_begins_after_the_step_that_is_being_read(config):
    config.replay.ratio, config.replay.controller = 0.1, RatioController.hold
    mixing, state = mix(config), TrainState()
    assert mixing.steer(state) is None, "there is nothing to compare before the first step"
    state.base_losses, state.step = {"general": 2.0, "old": 1.0}, 4
    state.last_losses = {"general": 3.0, "old": 0.0}
    state.plan = Cursor(4, *([0] * len(mixing.plan.pools) for _ in range(2))).to_plain()
    decision = mixing.steer(state)
    assert decision.rise_nats == pytest.approx(1.0), "the probe counts, not the replay source"
    assert [mixing.ratio_of_step(step) for step in (3, 4, 5, 49)] == pytest.approx([0.1, 0.1, 0.12, 0.12])
    assert state.ratio_changes == [[5, pytest.approx(0.12)]]
    resumed = mix(config)
    resumed.restore(state)
    assert [resumed.ratio_of_step(step) for step in range(50)] == [mixing.ratio_of_step(s) for s in range(50)]
    state.plan = {}
    with pytest.raises(DataError, match="of step 4 must say where in the data it stands"):
        resumed.restore(state)


def test_without_replay_the_ratio_asked_for_is_zero(config):
    for name in ("old", "older"):
        del config.data.sources[name]
    kept = {name: store for name, store in stores().items() if name in config.data.sources}
    mixing = mixing_of(config, kept, 8)
    assert not mixing.has_replay and mixing.plan.ratio(0) == 0.0


def packs_drawn(mixing):
    """Draw the whole run and return the (source, pack) of replay in it."""
    replay = {i for i, role in enumerate(ROLES.values()) if role is Role.replay}
    found = set()
    for step in range(mixing.num_steps):
        found |= {ref[:2] for ref in mixing.plan.packs_of_step(step) if ref.source in replay}
    return found


def pairs(packs):
    return {(source, pack) for source, found in packs.items() for pack in found.tolist()}


@pytest.mark.parametrize("max_steps", [3, 8, 400])
@pytest.mark.parametrize("weights", [(None, None), (3.0, 1.0)])
def test_the_replay_to_draw_is_what_a_run_without_a_controller_draws(config, max_steps, weights):
    config.data.sources["old"].weight, config.data.sources["older"].weight = weights
    config.replay.ratio, config.train.max_steps = 0.1, max_steps
    config.replay.schedule, config.replay.end_ratio = RatioSchedule.linear, 0.3
    mixing = mix(config)
    drawn = pairs(mixing.replay_to_draw())
    assert drawn == packs_drawn(mixing)
    assert (len(drawn) == 50) == (max_steps == 400), "all packs, once there are enough steps"


@pytest.mark.parametrize("max_steps", [3, 400])
def test_what_is_drawn_of_a_source_is_foreseen_whatever_its_role(config, max_steps):
    config.train.max_steps = max_steps
    mixing = mix(config)
    drawn = {
        (ref.source, ref.pack) for step in range(mixing.num_steps) for ref in mixing.plan.packs_of_step(step)
    }
    assert pairs(mixing.to_draw(range(4))) == drawn
    assert pairs(mixing.to_draw([1])) == {pack for pack in drawn if pack[0] == 1}
    config.replay.controller = RatioController.hold
    whole = pairs(mix(config).to_draw([1]))
    assert whole >= drawn & whole and len(whole) >= len(pairs(mixing.to_draw([1]))), (
        "a controller may draw any"
    )


@pytest.mark.parametrize("seed", range(8))
def test_no_decision_of_a_controller_draws_what_is_not_foreseen(config, seed):
    """Packs differ much in size here, so a bound by the mean would be broken now and then."""
    rng = np.random.default_rng(seed)
    ragged = stores()
    for name, store in ragged.items():
        store.train.pack_targets = rng.integers(1, SEQ_LEN, NUM_PACKS[name]).astype(np.int32)
    config.seed, config.replay.ratio = seed, 0.05
    config.replay.controller, config.replay.max_ratio = RatioController.hold, 0.15
    config.train.max_steps, config.evaluate.every_steps = 12, 1
    mixing = mixing_of(config, ragged, 8)
    foreseen = pairs(mixing.replay_to_draw())
    state = TrainState(ratio_changes=[[step, float(rng.uniform(0, 0.15))] for step in range(1, 12)])
    if seed == 0:
        state.ratio_changes = [[0, 0.15]]
    mixing.restore(state)
    drawn = packs_drawn(mixing)
    assert drawn <= foreseen and (drawn == foreseen) == (seed == 0)
    assert len(foreseen) < 50


def test_asking_what_will_be_drawn_does_not_move_the_plan(config):
    mixing, other = mix(config), mix(config)
    mixing.replay_to_draw()
    assert mixing.plan.cursor == other.plan.cursor
    assert mixing.plan.packs_of_step(0) == other.plan.packs_of_step(0)


def test_a_divergence_on_replay_that_is_never_drawn_is_refused(config):
    config.replay.ratio, config.replay.kl.beta = 0.0, 0.5
    with pytest.raises(
        DataError, match=r"`replay.kl.beta` must be 0 for a run that draws no replay, but is 0.5"
    ):
        mix(config).replay_to_draw()


def test_a_step_that_passes_over_the_data_several_times_is_told_with_the_size_that_fits(config):
    config.train.max_steps, config.train.max_epochs = None, 2.0
    config.replay.ratio = 0.0
    config.train.global_batch_tokens = 4000 * SEQ_LEN
    said = mix(config, 4000).too_large_a_step(config.train, num_ranks=2)
    # 400 packs to learn from, a step of 4000: ten passes, and an eighth of them is 50 packs.
    assert said.startswith("`train.global_batch_tokens` is"), "the log line says that it is a warning"
    assert "passes 10 times over the 400 packs" in said
    assert "10 passes in 1 step instead of train.max_epochs=2" in said
    assert f"Set train.global_batch_tokens={50 * SEQ_LEN}, " in said
    assert "`palimpsest init model=... data=...` writes an experiment whose sizes fit" in said


def test_steps_within_a_pass_are_not_told_of(config):
    config.train.max_steps, config.train.max_epochs = None, 2.0
    config.replay.ratio = 0.0
    assert mix(config, 300).too_large_a_step(config.train, num_ranks=2) is None
    said = mix(config, 700).too_large_a_step(config.train, num_ranks=2)
    assert "passes 1.75 times over" in said, "an epoch that is less than a step is told too"
    config.train.global_batch_tokens = 800 * SEQ_LEN
    said = mix(config, 800).too_large_a_step(config.train, num_ranks=800)
    assert "No step of 800 ranks is smaller: take fewer ranks, or add data" in said
    config.train.max_steps, config.train.max_epochs = 100, None
    assert "passes 1.75 times over" in mix(config, 700).too_large_a_step(config.train, num_ranks=2)
    assert "1e+03" not in mix(config, 800).too_large_a_step(config.train, num_ranks=2)
