"""The gate: which rules hold on which sets, and by how much they are broken."""

import ast
import math
import re
from pathlib import Path

import numpy as np
import pytest

import trainer
from trainer.command.before_ranks import check_gate_sets
from trainer.command.invocation import frozen_config, parse
from trainer.config.gate import GateRule, TaskRule
from trainer.config.store import compose_config, load_config, to_yaml
from trainer.errors import ConfigError
from trainer.evaluate.compare import compare_set
from trainer.evaluate.gate import check_gate, check_tasks
from trainer.evaluate.tasks.score import TaskComparison


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


def test_a_set_that_is_called_like_a_group_takes_no_other_out_of_its_rule():
    """With gate=default and replay=general, a probe beside it was not looked at."""
    sets = [
        compared("general", "replay", 0.2),
        compared("other", "probe", 0.9),
        compared("probe", "target", 0.0),
    ]

    def about(key):
        return [r.subject for r in check_gate({key: GateRule(max_rise_nats=1.0)}, sets)]

    assert about("general") == ["general", "other"]
    assert about("probe") == ["other", "probe"] and about("other") == ["other"]


@pytest.mark.parametrize("key", ["replay", "general", "unknown"])
def test_a_rule_about_a_set_that_was_not_evaluated_is_refused(key):
    with pytest.raises(
        ConfigError, match=rf"`gate.sets.{key}` must be about a set with held-out text \(code: target\)"
    ):
        check_gate({key: GateRule(max_rise_nats=1.0)}, SETS[:1])


def test_a_change_that_is_not_a_number_never_passes():
    import dataclasses

    broken = [dataclasses.replace(SETS[0], change_nats=math.nan)]
    results = check_gate({"code": GateRule(max_rise_nats=9.0, min_drop_nats=0.0)}, broken)
    assert [result.passed for result in results] == [False, False]


def scored(change, higher_is_better=True, metric="acc"):
    tuned = None if change is None else 0.5 + change
    return TaskComparison("arc", metric, 0.5, tuned, change, 0.01, 0.01, higher_is_better, 100)


@pytest.mark.parametrize(
    ("limits", "change", "excess"),
    [
        ({"max_drop": 0.02}, -0.02, 0.0),
        ({"max_drop": 0.02}, -0.05, 0.03),
        ({"max_drop": 0.02}, 0.5, 0.0),
        ({"min_rise": 0.1}, 0.04, 0.06),
        ({"min_rise": 0.1}, 0.1, 0.0),
    ],
)
def test_a_task_may_fall_and_must_rise_by_so_much(limits, change, excess):
    (result,) = check_tasks({"arc": TaskRule(**limits)}, [scored(change)])
    assert (result.passed, round(result.excess, 6)) == (excess == 0.0, excess)
    mirrored = {
        {"max_drop": "max_rise", "min_rise": "min_drop"}[name]: limit for name, limit in limits.items()
    }
    (result,) = check_tasks({"arc": TaskRule(**mirrored)}, [scored(-change, higher_is_better=False)])
    assert (result.passed, round(result.excess, 6)) == (excess == 0.0, excess)


def test_a_score_that_is_not_finite_never_passes():
    rule = TaskRule(metric="ppl", max_rise=1e9, min_drop=0.0)
    results = check_tasks({"arc": rule}, [scored(None, False, "ppl")])
    assert [result.passed for result in results] == [False, False]


def test_a_rule_that_a_worse_model_would_pass_is_refused():
    with pytest.raises(
        ConfigError, match=r"`gate.tasks.arc.max_rise` must be left out for acc, where more is better"
    ):
        check_tasks({"arc": TaskRule(max_rise=0.1)}, [scored(0.0)])
    (result,) = check_tasks({"arc": TaskRule(max_rise=0.1)}, [scored(0.0, higher_is_better=None)])
    assert result.passed


def test_a_rule_about_a_task_or_metric_that_was_not_measured_is_refused():
    with pytest.raises(
        ConfigError, match=r"`gate.tasks.mmlu` must be about a task that was evaluated \(arc\)"
    ):
        check_tasks({"mmlu": TaskRule(max_drop=0.1)}, [scored(0.0)])
    with pytest.raises(
        ConfigError, match=r"`gate.tasks.arc.metric` must be a metric of the task \(acc\), but is 'f1'"
    ):
        check_tasks({"arc": TaskRule(metric="f1", max_drop=0.1)}, [scored(0.0)])


GATE_CODE = (
    "command/before_ranks.py",
    "command/evaluate.py",
    "config/check_evaluate.py",
    "config/gate.py",
    "evaluate/gate.py",
    "evaluate/tasks/harness.py",
)
ADVISED = re.compile(r"(?<![\w.`])~?(?:gate|evaluate|export)(?:\.\w+)+(?:=(?:\[[^]]*\]|\w+(?:\.\w+)*))?")


def advised_words():
    """Return the overrides that sentences of the gate's code hold, with an entry's name for what is put in."""
    root = Path(trainer.__file__).parent
    for name in GATE_CODE:
        tree = ast.parse((root / name).read_text())
        inner = {
            id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                text = "".join(
                    str(part.value) if isinstance(part, ast.Constant) else "general" for part in node.values
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
                text = node.value
            else:
                continue
            yield from (word for word in ADVISED.findall(text) if word.startswith("~") or "=" in word)


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_every_override_that_a_sentence_of_the_gate_advises_is_taken(tmp_path, command):
    words = sorted(set(advised_words()))
    assert {"~gate.sets.general", "~gate.tasks.general", "export.despite_gate=true"} <= set(words)
    rules = ["gate.sets.general.max_rise_nats=0.1", "gate.tasks.general.max_drop=0.1"]
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(compose_config(["model=tiny", "data=text", *rules])))
    for word in words:
        asked = parse([command, f"run_dir={tmp_path}", word])
        assert frozen_config(asked) == path
        load_config(path, asked.overrides)


def test_a_set_without_held_out_text_is_refused_before_ranks_start():
    config = compose_config(["data=text", "gate.sets.corpus.min_drop_nats=0"])
    check_gate_sets(config, ["corpus"])
    with pytest.raises(
        ConfigError, match=r"`gate.sets.corpus` must be about a set with held-out text \(none\)"
    ):
        check_gate_sets(config, [])
