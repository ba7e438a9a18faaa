"""Bandwidths against their floors, and who is slow."""

import pytest

from trainer.preflight.facts import BandwidthFacts, Check
from trainer.preflight.floor import (
    GPU_BETWEEN,
    GPU_WITHIN,
    Floors,
    bus_bandwidth,
    floors_of,
    judge_between,
    judge_within,
    neighbours,
)


def test_bus_bandwidth_is_that_of_nccl_tests():
    """The sample output in nccl-tests/doc: 4 ranks move 1.5 times the size over each link."""
    assert bus_bandwidth(10**9, 1.0, 2) == 1.0
    assert bus_bandwidth(10**9, 0.5, 4) == pytest.approx(3.0)
    assert bus_bandwidth(268435456, 0.001, 8) == pytest.approx(469.76, abs=0.01)


def test_gpus_have_floors_of_their_own_and_cpus_none():
    assert floors_of(None, None, on_gpu=True) == Floors(GPU_WITHIN, GPU_BETWEEN)
    assert floors_of(None, None, on_gpu=False) == Floors(None, None)
    assert floors_of(100.0, 0.0, on_gpu=True) == Floors(100.0, 0.0)
    assert floors_of(None, 0.2, on_gpu=False) == Floors(None, 0.2)


def rates(within=(400.0, 400.0, 400.0), between=(20.0, 20.0, 20.0), pairs=None, errors=()):
    """Return facts of three nodes with two processes each."""
    return [
        BandwidthFacts(
            2 * n + g,
            f"node{n + 1}",
            within[n],
            between[n],
            (pairs or {}).get(n + 1, {}) if g == 0 else {},
            dict(errors).get(2 * n + g),
        )
        for n in range(3)
        for g in range(2)
    ]


def test_healthy_links_pass_and_the_rails_of_a_node_add_up():
    row, problems = judge_within(rates(), 300.0)
    assert problems == [] and row.result == "400 GB/s at least (node1), floor 300"
    row, problems = judge_between(rates(), 30.0)
    assert problems == [] and row.result == "40 GB/s at least (node1), floor 30"
    assert judge_between(rates(), None)[0].result == "40 GB/s at least (node1), no floor"


def test_a_node_whose_own_links_are_slow_is_named():
    row, (problem,) = judge_within(rates(within=(400.0, 12.0, 400.0)), 300.0)
    assert row.has_failed and (problem.check, problem.nodes) == (Check.within, ("node2",))
    assert "`all-reduce in node2` must be at least 300 GB/s (cluster.preflight.min_intra" in problem.sentence


def test_the_node_that_is_slow_with_everybody_is_named_and_not_its_neighbours():
    slow = rates(between=(1.0, 1.0, 1.0), pairs={1: {"node2": 1.1}, 2: {"node3": 1.0}, 3: {"node1": 11.0}})
    row, (problem,) = judge_between(slow, 30.0)
    assert row.has_failed and problem.nodes == ("node2",)
    assert "`all-reduce between node2 and others` must be at least 30 GB/s a node" in problem.sentence
    assert "Alone with one other node, node2 1.1 GB/s at best, others up to 11." in problem.sentence


def test_a_network_that_is_slow_everywhere_is_nobodys_fault_alone():
    slow = rates(between=(1.0, 1.0, 1.0), pairs={1: {"node2": 1.1}, 2: {"node3": 1.0}, 3: {"node1": 1.2}})
    (problem,) = judge_between(slow, 30.0)[1]
    assert problem.nodes == ("node1", "node2", "node3")


def test_what_kept_a_process_from_the_others_is_told_and_not_that_they_waited():
    failed = rates(errors=[(0, "wait timeout after 30 s"), (3, "Unable to find address for: ib7")])
    row, (problem,) = judge_within(failed, None)
    assert row.has_failed and problem.nodes == ("node2",) and "ib7" in problem.sentence
    assert judge_between(failed, 1.0)[0].result == "not measured"
    assert len(judge_within(rates(errors=[(0, "timeout"), (3, "Timeout")]), None)[1]) == 2


def test_one_process_a_node_or_one_node_leaves_nothing_to_measure():
    assert judge_within([BandwidthFacts(0, "a"), BandwidthFacts(1, "b", None, 2.0)], 5.0)[0].nodes == 0
    assert judge_between([BandwidthFacts(0, "a", 2.0)], 5.0) == (judge_between([], None)[0], [])


@pytest.mark.parametrize("num", range(1, 9))
def test_every_node_is_measured_with_its_neighbours_and_never_with_two_at_once(num):
    names = [f"n{i}" for i in range(num)]
    rounds = list(neighbours(names))
    for pairs in rounds:
        busy = [node for pair in pairs for node in pair]
        assert len(busy) == len(set(busy))
    links = [frozenset(pair) for pairs in rounds for pair in pairs]
    assert len(links) == len(set(links)) == (num if num > 2 else num - 1)
