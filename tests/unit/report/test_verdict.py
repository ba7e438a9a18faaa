"""The sentence a person reads first."""

import dataclasses

import pytest

from trainer.evaluate.compare import SetComparison
from trainer.report.verdict import no_interval, verdict

ONE = SetComparison("code", "target", 50, 9000, 36_000, 2.805, 2.473, -0.332, -0.361, -0.301, None, None)


def changed(name, role, change, low, high):
    return dataclasses.replace(
        ONE, name=name, role=role, change_nats=change, change_low=low, change_high=high
    )


def test_targets_come_first_and_sizes_have_no_sign():
    sets = [changed("general", "replay", 0.021, 0.0102, 0.0298), ONE]
    assert verdict(sets) == (
        "code fell by 0.332 nats (0.301 to 0.361); general rose by 0.021 nats (0.010 to 0.030)."
    )


def test_an_interval_around_0_is_no_change_seen():
    quiet = changed("chat", "probe", 0.004, -0.01, 0.018)
    other = changed("wiki", "probe", -0.002, -0.02, 0.0)
    assert verdict([quiet, ONE]).endswith("; no change seen in chat (\u22120.010 to 0.018).")
    assert verdict([quiet, other]) == (
        "No change seen in chat (\u22120.010 to 0.018) and wiki (\u22120.020 to 0.000)."
    )


def test_one_document_is_said_to_have_no_interval():
    assert verdict([changed("chat", "probe", 0.1, None, None)]) == (
        "chat rose by 0.100 nats (no interval: fewer than 5 documents)."
    )


def test_a_very_narrow_interval_gets_the_decimals_it_needs():
    assert "rose by 0.00021 nats (0.00017 to 0.00025)" in verdict(
        [changed("a", "target", 0.00021, 0.00017, 0.00025)]
    )


@pytest.mark.parametrize("sets", [[]])
def test_no_set_is_said(sets):
    assert verdict(sets) == "No held-out set was measured."


def test_sets_without_an_interval_are_told_why_and_what_to_change():
    assert no_interval({"chat": 1, "wiki": 5}) == (
        "No interval for chat (1 document): it takes 5 held-out documents. Raise data.validation_frac "
        "(at most 0.5), or give more documents."
    )
    assert no_interval({"wiki": 5}) is None
