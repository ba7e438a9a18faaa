"""Which rank is slow, from what ranks compute without their waiting."""

import pytest
import torch

from trainer.dist.mesh import alone
from trainer.run.pace import NUM_LAYERS, Pace, Stragglers

NODES = ["node1", "node1", "node2", "node2"]


def changes(stragglers, *spans):
    return [[(one.rank, one.is_slow) for one in stragglers.look(span)] for span in spans]


def test_a_slow_rank_is_named_once_and_again_when_it_is_well():
    slow, even = [1.0, 1.01, 0.99, 1.35], [1.0, 1.01, 0.99, 1.02]
    stragglers = Stragglers(1.3, NODES)
    found = changes(stragglers, slow, slow, slow, slow, even, slow, even, even, even)
    assert found == [[], [(3, True)], [], [], [], [], [], [(3, False)], []]


def test_a_single_slow_span_is_a_hiccup():
    stragglers = Stragglers(1.3, NODES)
    assert changes(stragglers, [1, 1, 9, 1], [1, 1, 1, 1], [1, 9, 1, 1]) == [[], [], []]
    assert stragglers.slowest == {"slowest_rank": 1.0, "slowest_ratio": 9.0}


def test_of_two_ranks_the_slower_one_is_named():
    stragglers = Stragglers(1.3, NODES[1:3])
    stragglers.look([2.0, 2.7])
    (change,) = stragglers.look([2.0, 2.7])
    assert (change.rank, change.node, change.step_s) == (1, "node2", 2.7)
    assert change.ratio == pytest.approx(1.35)


def test_no_time_at_all_names_nobody():
    assert changes(Stragglers(1.3, NODES), [0.0] * 4, [0.0] * 4) == [[], []]


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("trainer.run.pace.time", clock)
    return clock


class Slow(torch.nn.Linear):
    """Takes a second, and two more in which it waits for others when that is asked for."""

    def __init__(self, clock):
        super().__init__(2, 2)
        self.clock = clock

    def forward(self, x):
        self.clock.now += 1.0
        return super().forward(x)


def gather(module, inputs):
    module.clock.now += 2.0


def seconds(pace, *waits):
    """Return what the pace tells of steps with such waits for data."""
    told = []
    pace.stragglers = type("Told", (), {"look": lambda self, found: told.extend(found)})()
    for wait in waits:
        with pace.computing():
            pace.module(torch.zeros(1, 2))
        pace.step(wait)
    return told


@pytest.mark.parametrize(("by_layers", "expected"), [(False, 9.5), (True, 3.5)])
def test_waits_within_the_forward_pass_are_left_out_where_it_has_collectives(clock, by_layers, expected):
    module = torch.nn.Sequential(*(Slow(clock) for _ in range(3)))
    for layer in module:
        layer.register_forward_pre_hook(gather)  # as ZeRO-3 does, before ours
    pace = Pace(alone(torch.device("cpu")), module, by_layers, 2, Stragglers(1.3, ["node1"]))
    pace.module = module
    assert seconds(pace, 0.25, 0.75) == [expected]
    module(torch.zeros(1, 2))  # an evaluation is not timed
    assert seconds(pace, 0.25, 0.75) == [expected]


def test_layers_are_taken_from_all_over_a_large_model(clock):
    module = torch.nn.Sequential(*(Slow(clock) for _ in range(10 * NUM_LAYERS)))
    pace = Pace(alone(torch.device("cpu")), module, True, 1, Stragglers(1.3, ["node1"]))
    pace.module = module
    assert seconds(pace, 0.0) == [float(NUM_LAYERS)]
    timed = [index for index, layer in enumerate(module) if layer._forward_hooks]
    assert timed[0] == 0 and timed[-1] >= 9 * NUM_LAYERS
