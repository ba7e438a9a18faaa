"""Numbers and ticks as people read them."""

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trainer.report.number import decimals_for, fixed, short, signed, tick_labels, ticks

FINITE = st.floats(-1e12, 1e12, allow_nan=False)


@given(FINITE, FINITE)
@example(0.0, 5e-324)
def test_ticks_enclose_the_values_evenly_and_are_few(a, b):
    low, high = min(a, b), max(a, b)
    values = ticks(low, high)
    assert 2 <= len(values) <= 8 and len(set(tick_labels(values))) == len(values)
    room = 1e-6 * (values[1] - values[0])
    assert values[0] <= low + room and high - room <= values[-1]
    gaps = [after - before for before, after in itertools.pairwise(values)]
    assert max(gaps) == pytest.approx(min(gaps), rel=1e-3)


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (2.27, 2.9, ["2.2", "2.4", "2.6", "2.8", "3.0"]),
        (0, 10_485_760, ["0", "5M", "10M", "15M"]),
        (0, 7_000_000, ["0", "2M", "4M", "6M", "8M"]),
        (0, 2e-4, ["0", "5e\u22125", "1e\u22124", "1.5e\u22124", "2e\u22124"]),
        (-0.3, 0.1, ["\u22120.3", "\u22120.2", "\u22120.1", "0.0", "0.1"]),
        (0, 2000, ["0", "500", "1,000", "1,500", "2,000"]),
        (0, 190_000, ["0", "50k", "100k", "150k", "200k"]),
    ],
)
def test_tick_labels_have_the_decimals_that_tell_them_apart(low, high, labels):
    assert tick_labels(ticks(low, high)) == labels


def test_steps_have_whole_ticks_only():
    assert ticks(0, 3, 6, whole=True) == [0, 1, 2, 3]
    assert ticks(7, 7, whole=True) == [7, 8]


def test_signs_are_real_and_zero_has_none():
    assert signed(0.0213, 3) == "+0.021" and signed(-0.3321, 3) == "\u22120.332"
    assert signed(-0.0001, 3) == "0.000" and fixed(-0.0001, 3) == "0.000"
    assert fixed(-1234.5, 1) == "\u22121,234.5"


def test_decimals_show_half_the_width():
    assert decimals_for(None, None) == 3 and decimals_for(0.1, 0.9) == 3
    assert decimals_for(0.0003, 0.0005) == 4


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (16, "16"),
        (2.47252, "2.473"),
        (41.357, "41.36"),
        (249.47, "249.5"),
        (182_345.6, "182,346"),
        (1.1128e-5, "1.11e\u22125"),
        (0.00123, "0.00123"),
    ],
)
def test_short_numbers_have_about_four_digits(value, text):
    assert short(value) == text
