"""What is said before the first step, worked out by hand."""

import pytest

from trainer.metrics.outlook import Outlook


def outlook(forward_s=1.0, recomputed=0.0, num_steps=10):
    return Outlook(forward_s, 100, 2000, num_steps, recomputed, 500, 2)


def test_a_step_is_three_forward_passes_and_one_more_where_all_is_recomputed():
    assert outlook().step_s == pytest.approx(60)  # 2000 tokens at 10 ms, three times
    assert outlook(recomputed=1.0).step_s == pytest.approx(80)
    assert outlook(recomputed=0.5).step_s == pytest.approx(70)
    assert outlook().run_s == pytest.approx(10 * 60 + 2 * 5)


def test_long_steps_are_said_with_the_time_of_the_run_and_short_ones_are_not():
    assert outlook().sentence == (
        "A step of 2,000 tokens a rank will take about 1m00s here, and what is left of the run about 10m10s, by one "
        "forward pass."
    )
    assert outlook(forward_s=0.1).sentence is None and outlook(num_steps=0).sentence is None
