"""Counts of equal bins around 0."""

import numpy as np

from trainer.evaluate.histogram import histogram_of


def test_bins_reach_to_a_round_number_and_0_is_an_edge():
    found = histogram_of(np.array([0.013, -0.002, 0.0]))
    assert found.edges[0] == -0.02 and found.edges[-1] == 0.02 and found.edges[10] == 0.0
    assert sum(found.counts) == 3 and sum(found.counts[:10]) == 1
    assert histogram_of(np.array([70.0])).edges[-1] == 100.0
    assert histogram_of(np.array([50.0])).counts[-1] == 1, "the last edge counts below"


def test_what_is_not_finite_is_left_out_and_nothing_is_no_error():
    assert sum(histogram_of(np.array([np.nan, np.inf, 1.0])).counts) == 1
    assert sum(histogram_of(np.array([])).counts) == 0
    assert histogram_of(np.array([0.0])).edges[-1] == 1.0
