"""What counts as a spike, and that a resumed run decides as one that was not interrupted."""

import dataclasses
import json
import random

import pytest
import torch

from trainer.checkpoint.state import TrainState, read_state, write_state
from trainer.config.spikes import SpikeConfig, SpikePolicy
from trainer.dist.mesh import alone
from trainer.run.spikes import SpikeWatch


def watch(policy=SpikePolicy.log, **options):
    return SpikeWatch(SpikeConfig(**{"policy": policy, "window": 16, "least": 4} | options), MESH)


MESH = alone(torch.device("cpu"))


def step(watch, state, loss, norm=1.0):
    """Judge a step and learn from it; tell whether it is a spike."""
    numbers = {"loss": loss, "grad_norm": norm}
    spike = watch.find(state, numbers)
    watch.learn(state, numbers, spike is not None)
    return None if spike is None else spike.number


def test_a_loss_far_beyond_the_usual_is_a_spike_and_usual_noise_is_none():
    random.seed(0)
    spikes, state = watch(), TrainState()
    assert [step(spikes, state, random.gauss(2.0, 0.05)) for _ in range(200)] == [None] * 200
    assert step(spikes, state, 100.0) == "loss"
    assert step(spikes, state, 2.0, norm=50.0) == "grad_norm"
    assert step(spikes, state, 2.0) is None


def test_a_spike_does_not_move_the_bound():
    spikes, state = watch(), TrainState()
    for loss in [2.0, 2.1, 1.9, 2.0, 2.05]:
        step(spikes, state, loss)
    before = spikes.bounds(state)
    step(spikes, state, 100.0)
    assert spikes.bounds(state) == before


def test_nothing_is_judged_before_there_are_enough_steps():
    spikes, state = watch(least=6), TrainState()
    assert [step(spikes, state, loss) for loss in [2.0, 900.0, 2.0, 2.0, 2.0, 2.0, 900.0]] == [None] * 6 + [
        "loss"
    ]


def test_steps_that_are_all_alike_allow_for_some_noise():
    spikes, state = watch(deviations=10.0), TrainState()
    assert [step(spikes, state, loss) for loss in [2.0] * 8 + [2.39, 2.41]] == [None] * 9 + ["loss"]


def test_a_new_level_is_learnt_after_some_spikes_in_a_row():
    spikes, state = watch(max_in_a_row=3), TrainState()
    found = [step(spikes, state, loss) for loss in [2.0] * 8 + [9.0] * 10 + [90.0]]
    assert found == [None] * 8 + ["loss"] * 3 + [None] * 7 + ["loss"]


@pytest.mark.parametrize("policy", [SpikePolicy.log, SpikePolicy.skip, SpikePolicy.rewind])
def test_a_resumed_run_decides_as_one_that_was_not_interrupted(tmp_path, policy):
    random.seed(1)
    losses = [random.lognormvariate(0.7, 0.3) for _ in range(120)]
    spikes, whole, resumed = watch(policy, deviations=3.0), TrainState(), TrainState()
    expected, found = [], []
    for number, loss in enumerate(losses):
        expected.append(step(spikes, whole, loss))
        found.append(step(watch(policy, deviations=3.0), resumed, loss))
        if number % 7 == 0:
            write_state(tmp_path / "state.json", resumed)
            resumed = read_state(tmp_path / "state.json")
    assert found == expected and "loss" in expected
    assert json.dumps(dataclasses.asdict(resumed)) == json.dumps(dataclasses.asdict(whole))


def test_off_looks_at_nothing():
    spikes, state = watch(SpikePolicy.off), TrainState()
    assert [step(spikes, state, loss) for loss in [2.0] * 8 + [900.0]] == [None] * 9
    assert state.usual == {}
