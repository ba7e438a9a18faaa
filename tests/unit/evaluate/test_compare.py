"""Changes with intervals. A failure here means the forgetting report would state a change that is not there."""

import json
import math
import random

import numpy as np
import pytest

from trainer.errors import DataError
from trainer.evaluate import compare
from trainer.evaluate.compare import by_document, compare_set, mean_with_interval

TARGETS = np.array([12, 7, 30, 4, 19, 8, 25, 11])
BASE = np.array([40.0, 11.0, 95.0, 20.0, 44.0, 31.0, 60.0, 29.0])
TUNED = BASE - np.array([3.0, -1.0, 9.0, 0.5, 8.0, 1.0, 2.0, 6.0])
BYTES = 4 * TARGETS


def documents(num_documents, change, seed):
    """Documents whose losses differ a lot, and whose change scatters a little around `change`."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(20, 200, num_documents)
    base = targets * rng.gamma(4.0, 0.6, num_documents)
    tuned = base + targets * (change + 0.1 * rng.standard_normal(num_documents))
    return base, tuned, targets


def test_means_are_weighted_by_tokens_and_bits_by_bytes():
    found = compare_set("code", "target", BASE, TUNED, TARGETS, BYTES)
    assert found.num_documents == 8 and found.num_targets == 116 and found.num_bytes == 464
    assert found.base_nats == pytest.approx(330 / 116)
    assert found.tuned_nats == pytest.approx(301.5 / 116)
    assert found.change_nats == pytest.approx(-28.5 / 116)
    assert found.base_bits_per_byte == pytest.approx(330 / math.log(2) / 464)
    assert found.tuned_bits_per_byte == pytest.approx(301.5 / math.log(2) / 464)


def test_the_interval_is_that_of_a_plain_bootstrap():
    """Drawn by another generator and summed by hand: a wrong axis or weight would show here."""
    draw = random.Random(1)
    changes = []
    for _ in range(20_000):
        drawn = [draw.randrange(8) for _ in range(8)]
        total = sum(TUNED[d] - BASE[d] for d in drawn)
        changes.append(total / sum(TARGETS[d] for d in drawn))
    changes.sort()
    found = compare_set("code", "target", BASE, TUNED, TARGETS)
    width = changes[19_499] - changes[499]
    assert found.change_low == pytest.approx(changes[499], abs=0.04 * width)
    assert found.change_high == pytest.approx(changes[19_499], abs=0.04 * width)


def test_the_true_change_lies_inside_the_interval_about_95_times_in_100():
    """Much less means too narrow intervals: the report would call noise forgetting."""
    num_inside = 0
    for seed in range(300):
        found = compare_set("s", "probe", *documents(80, 0.05, seed), num_resamples=1000)
        num_inside += found.change_low <= 0.05 <= found.change_high
    assert 0.91 <= num_inside / 300 <= 0.985


def test_pieces_of_a_document_are_drawn_together():
    """Worked out by hand. Six documents of two alike pieces, three of which rose by 1 and three fell by 1.

    Of six documents drawn, k rose: the change is (2 k - 6) / 6, and k is binomial. P(k = 0) = 1/64 is below 2.5 %,
    P(k <= 1) = 7/64 above: the interval ends at (2 - 6) / 6 = -2/3. Pieces drawn one by one would be twelve, with
    P(k <= 2) = 79/4096 = 1.9 % and P(k <= 3) = 7.3 %: it would end at (6 - 12) / 12 = -1/2, as if twelve were known.
    """
    changes_P = np.repeat([1.0, 1.0, 1.0, -1.0, -1.0, -1.0], 2)
    documents_P = np.repeat(np.arange(6), 2)
    ones_P = np.ones(12, dtype=np.int64)
    apart = mean_with_interval("s", changes_P, ones_P)
    assert (apart.low, apart.high, apart.num_documents) == (-0.5, 0.5, 12)
    whole = mean_with_interval("s", by_document(documents_P, changes_P), by_document(documents_P, ones_P))
    assert (whole.low, whole.high) == pytest.approx((-2 / 3, 2 / 3)) and whole.num_documents == 6
    assert whole.mean == apart.mean == 0 and whole.num_tokens == 12


def test_numbers_of_pieces_are_added_up_by_document_wherever_they_lie():
    found = by_document(np.array([7, 2, 7, 9, 2]), np.array([1.0, 2.0, 4.0, 8.0, 16.0]))
    assert found.tolist() == [18.0, 5.0, 8.0]
    assert by_document(np.array([], dtype=np.int64), np.array([])).tolist() == []


def test_pairing_makes_the_interval_much_narrower_than_two_separate_ones():
    base, tuned, targets = documents(200, 0.05, 0)
    found = compare_set("s", "probe", base, tuned, targets)
    alone = [mean_with_interval("s", scores, targets) for scores in (base, tuned)]
    unpaired = math.hypot(*(one.high - one.low for one in alone))
    assert found.change_high - found.change_low < unpaired / 5


def test_the_same_numbers_give_the_same_interval_whatever_is_drawn_at_once(monkeypatch):
    base, tuned, targets = documents(50, 0.0, 3)
    whole = compare_set("s", "probe", base, tuned, targets)
    monkeypatch.setattr(compare, "CHUNK_DRAWS", 333)
    assert compare_set("s", "probe", base, tuned, targets) == whole
    assert compare_set("s", "probe", base, tuned, targets, seed=1) != whole


def test_fewer_than_five_documents_have_no_interval():
    """Two documents, each with its own change, would give an interval between the two changes."""
    assert mean_with_interval("s", BASE[:4], TARGETS[:4]).low is None
    assert mean_with_interval("s", BASE[:5], TARGETS[:5]).low is not None
    assert compare_set("s", "probe", BASE[:4], TUNED[:4], TARGETS[:4]).change_low is None


def test_one_document_has_no_interval_rather_than_one_of_no_width():
    found = compare_set("s", "probe", BASE[:1], TUNED[:1], TARGETS[:1])
    assert (found.change_low, found.change_high) == (None, None)
    assert found.change_nats == pytest.approx(-0.25)
    assert mean_with_interval("s", BASE[:1], TARGETS[:1]).low is None


def test_documents_without_a_supervised_token_are_left_out():
    padded = [np.append(values, 0) for values in (BASE, TUNED, TARGETS)]
    assert compare_set("s", "probe", *padded) == compare_set("s", "probe", BASE, TUNED, TARGETS)


@pytest.mark.parametrize("size", [None, np.zeros(8, dtype=np.int64)], ids=["none", "zeros"])
def test_unknown_bytes_give_no_bits_per_byte(size):
    found = compare_set("s", "probe", BASE, TUNED, TARGETS, size)
    assert found.base_bits_per_byte is None and found.tuned_bits_per_byte is None


def test_a_comparison_becomes_plain_json():
    plain = compare_set("s", "probe", BASE, TUNED, TARGETS, BYTES).to_plain()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert list(plain)[:3] == ["name", "role", "num_documents"]


def test_a_sum_alone_gets_a_mean_with_its_interval():
    found = mean_with_interval("chat", BASE, TARGETS)
    assert found.mean == pytest.approx(330 / 116)
    assert found.low < found.mean < found.high
    assert (found.num_tokens, found.num_documents) == (116, 8)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("key", ["base_nll_D", "tuned_nll_D"])
def test_a_number_that_is_not_finite_is_refused_by_set_key_and_document(key, value):
    arrays = {"base_nll_D": BASE.copy(), "tuned_nll_D": TUNED.copy()}
    arrays[key][5] = value
    with pytest.raises(
        DataError, match=rf"`{key}` of held-out set 'code' must be finite, but is .* document 5"
    ):
        compare_set("code", "target", **arrays, targets_D=TARGETS)
    with pytest.raises(DataError, match="'chat' must be finite"):
        mean_with_interval("chat", arrays[key], TARGETS)


def test_arrays_that_do_not_fit_or_count_nothing_are_refused():
    with pytest.raises(DataError, match=r"`tuned_nll_D` of held-out set 'code' must have shape \[8\]"):
        compare_set("code", "target", BASE, TUNED[:7], TARGETS)
    with pytest.raises(DataError, match="must be 0 or more, but is -1"):
        compare_set("code", "target", BASE, TUNED, TARGETS - 5)
    for num_documents in (0, 8):
        with pytest.raises(DataError, match="'code' must have a supervised token"):
            scores = np.zeros(num_documents)
            compare_set("code", "target", scores, scores, np.zeros(num_documents, dtype=np.int64))
