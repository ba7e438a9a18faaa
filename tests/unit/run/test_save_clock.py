"""How often a run saves where nobody said."""

import pytest

from trainer.run.save_clock import FIRST_S, SaveClock, interval_s


@pytest.mark.parametrize(
    ("stall_s", "write_s", "node_days", "num_nodes", "expected_s"),
    [
        # sqrt(2 x 2 s x 264 days / 256) = sqrt(4 x 89100) = 597.0 s
        (2.0, 30.0, 264.0, 256, 596.99),
        # One node: 9,551 s, but nobody wants to lose more than an hour.
        (2.0, 30.0, 264.0, 1, 3600.0),
        # A copy that costs nothing, on nodes that fail every minute.
        (0.001, 5.0, 0.0007, 1, 60.0),
        # A disk that takes longer than all that: the next save waits for the one before.
        (1.0, 400.0, 0.01, 1, 800.0),
        (1.0, 4000.0, 264.0, 1, 8000.0),
    ],
)
def test_the_interval_is_that_of_young_and_daly_within_bounds(
    stall_s, write_s, node_days, num_nodes, expected_s
):
    assert interval_s(stall_s, write_s, node_days, num_nodes) == pytest.approx(expected_s, rel=1e-4)


def test_the_first_rank_counts_from_the_beginning_of_each_save():
    now = [0.0]
    clock = SaveClock(264.0, 256, speaks=True, now=lambda: now[0])
    quiet = SaveClock(264.0, 256, speaks=False, now=lambda: now[0])
    now[0] = FIRST_S - 1
    assert clock.urgency == 0
    now[0] = FIRST_S
    assert clock.urgency == 1 and quiet.urgency == 0
    clock.begins()
    clock.took(2.0, 30.0)
    assert clock.urgency == 0
    now[0] += 596
    assert clock.urgency == 0
    now[0] += 2
    assert clock.urgency == 1
    now[0] += 600
    assert clock.urgency == 2
