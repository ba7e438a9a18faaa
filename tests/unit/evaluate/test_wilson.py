"""The interval of a share: its ends are where the share is just within the normal bound of that end."""

import math

import pytest

from trainer.evaluate.wilson import Z, wilson_interval


@pytest.mark.parametrize(
    ("num_right", "num_all"), [(50, 100), (0, 10), (10, 10), (1, 1), (3, 400), (399, 400)]
)
def test_the_ends_are_as_far_from_the_share_as_their_own_spread(num_right, num_all):
    share = num_right / num_all
    low, high = wilson_interval(num_right, num_all)
    assert 0 <= low <= share <= high <= 1 and high > low
    for end in (low, high):
        if 0 < end < 1:
            assert abs(share - end) == pytest.approx(Z * math.sqrt(end * (1 - end) / num_all), abs=1e-12)


def test_half_of_a_hundred_has_the_interval_that_tables_have():
    assert wilson_interval(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)


def test_more_cases_say_more():
    widths = [high - low for low, high in (wilson_interval(6 * n, 10 * n) for n in (1, 10, 100, 1000))]
    assert widths == sorted(widths, reverse=True)
