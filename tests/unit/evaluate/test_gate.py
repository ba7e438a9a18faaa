"""The gate: which rules hold on which sets, and by how much they are broken."""

import math

import numpy as np
import pytest

from trainer.config.gate import GateRule
from trainer.errors import ConfigError
from trainer.evaluate.compare import compare_set
from trainer.evaluate.gate import check_gate


def compared(name, role, change):
    targets = np.array([10, 30], dtype=np.int64)
    base = np.array([20.0, 60.0])
    return compare_set(name, role, base, base + change * targets, targets, num_resamples=50)


SETS = [compared("code", "target", -0.3), compared("web", "replay", 0.04), compared("chat", "probe", 0.08)]


def found(**rules):
    results = check_gate(rules, SETS)
    return {(r.subject, r.rule.split()[0]): (r.passed, round(r.excess, 6)) for r in results}


def test_a_rule_is_about_a_set_a_role_or_everything_general():
    assert found(chat=GateRule(max_rise_nats=0.1)) == {("chat", "rises"): (True, 0.0)}
    assert found(target=GateRule(min_drop_nats=0.2)) == {("code", "falls"): (True, 0.0)}
    assert found(general=GateRule(max_rise_nats=0.05)) == {
        ("web", "rises"): (True, 0.0),
        ("chat", "rises"): (False, 0.03),
    }


def test_a_target_that_fell_too_little_fails_by_what_is_missing():
    assert found(code=GateRule(min_drop_nats=0.5)) == {("code", "falls"): (False, 0.2)}
    assert found(code=GateRule(max_rise_nats=0.0, min_drop_nats=0.3)) == {
        ("code", "rises"): (True, 0.0),
        ("code", "falls"): (True, 0.0),
    }


def test_a_set_of_that_name_comes_before_the_meaning_of_the_word():
    sets = [compared("general", "probe", 0.2), compared("other", "probe", 0.9)]
    assert [r.subject for r in check_gate({"general": GateRule(max_rise_nats=1.0)}, sets)] == ["general"]


@pytest.mark.parametrize("key", ["replay", "general", "unknown"])
def test_a_rule_about_a_set_that_was_not_evaluated_is_refused(key):
    with pytest.raises(
        ConfigError, match=rf"`gate.sets.{key}` must be about a set that was evaluated \(code\)"
    ):
        check_gate({key: GateRule(max_rise_nats=1.0)}, SETS[:1])


def test_a_change_that_is_not_a_number_never_passes():
    import dataclasses

    broken = [dataclasses.replace(SETS[0], change_nats=math.nan)]
    results = check_gate({"code": GateRule(max_rise_nats=9.0, min_drop_nats=0.0)}, broken)
    assert [result.passed for result in results] == [False, False]
