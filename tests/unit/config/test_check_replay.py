"""Rules about roles, weights, the replay ratio, its schedule and its controller."""

import pytest

from tests.helpers.tiny import tiny_config
from tests.unit.config.test_check import edited
from trainer.config.check import find_problems
from trainer.config.data import Format, Role, SourceConfig
from trainer.config.objective import ObjectiveKind
from trainer.config.replay import RatioController, RatioSchedule, ReplayChoice, Shift


@pytest.fixture
def config(tmp_path):
    """Return a configuration with a source of every role."""
    config = tiny_config(tmp_path)
    config.data.sources = {
        "new": SourceConfig(path="new.jsonl"),
        "more": SourceConfig(path="more.jsonl"),
        "old": SourceConfig(path="old.jsonl", role=Role.replay),
        "older": SourceConfig(path="older.jsonl", role=Role.replay),
        "general": SourceConfig(path="general.jsonl", role=Role.probe),
    }
    config.evaluate.every_steps = 5
    return config


HOLD = {"replay.controller": RatioController.hold}
LOSING = {"replay.choice": ReplayChoice.losing}
REWARD = {"objective.kind": ObjectiveKind.reward}
PAIRS = {"objective.kind": ObjectiveKind.preference, "data.sources.new.format": Format.preference}
WEIGHED = {"objective.kind": ObjectiveKind.weighted}
PIECEWISE = {"replay.schedule": RatioSchedule.piecewise}
RULES = [
    ("replay.ratio", {"replay.ratio": 1.0}),
    ("replay.ratio", {"replay.ratio": -0.1}),
    ("replay.ratio", {"replay.ratio": float("nan")}),
    ("replay.end_ratio", {"replay.end_ratio": 1.5}),
    ("replay.end_ratio", {"replay.schedule": RatioSchedule.cosine}),
    ("replay.end_ratio", {"replay.schedule": RatioSchedule.linear}),
    ("replay.front_frac", {"replay.front_frac": 1.5}),
    ("replay.points", PIECEWISE),
    ("replay.points", PIECEWISE | {"replay.points": [[0.0, 0.1], [0.5]]}),
    ("replay.points", PIECEWISE | {"replay.points": [[0, "much"]]}),
    ("replay.points", PIECEWISE | {"replay.points": [0.5]}),
    ("replay.points", PIECEWISE | {"replay.points": [[0.1, 0.1]]}),
    ("replay.points", PIECEWISE | {"replay.points": [[0.0, 0.1], [0.5, 0.1], [0.4, 0.1]]}),
    ("replay.points", PIECEWISE | {"replay.points": [[0.0, 0.1], [1.0, 0.1]]}),
    ("replay.points", PIECEWISE | {"replay.points": [[0.0, 1.1]]}),
    ("replay.epsilon", HOLD | {"replay.epsilon": 0.0}),
    ("replay.max_change", HOLD | {"replay.max_change": 0.0}),
    ("replay.min_ratio", HOLD | {"replay.min_ratio": 0.3, "replay.max_ratio": 0.2}),
    ("replay.watch", HOLD | {"replay.watch": ["unknown"]}),
    ("evaluate.every_steps", HOLD | {"evaluate.every_steps": 0}),
    ("replay.kl.beta", {"replay.kl.beta": -0.5}),
    ("replay.kl.beta", {"replay.kl.beta": float("nan")}),
    ("replay.kl.beta", {"replay.kl.beta": float("inf")}),
    ("replay.kl.top", {"replay.kl.top": 0}),
    ("replay.epsilon_kl", HOLD | {"replay.epsilon_kl": 0.0}),
    ("replay.epsilon_kl", HOLD | {"replay.epsilon_kl": float("nan")}),
    ("evaluate.forgetting", HOLD | {"replay.epsilon_kl": 0.1, "evaluate.forgetting": False}),
    ("evaluate.kl_packs", HOLD | {"replay.epsilon_kl": 0.1, "evaluate.kl_packs": 0}),
    ("replay.loss_weight", {"replay.loss_weight": 0.0}),
    ("replay.loss_weight", {"replay.loss_weight": float("inf")}),
    ("replay.choice_every", LOSING | {"replay.choice_every": 0}),
    ("replay.choice_of", LOSING | {"replay.choice_of": 1}),
    ("data.sources.new.weight", {"data.sources.new.weight": -1.0, "data.sources.more.weight": 2.0}),
    ("data.sources.general.weight", {"data.sources.general.weight": 1.0}),
    ("data.sources.old.max_epochs", {"data.sources.old.max_epochs": 0.0}),
    ("data.sources", {"data.sources.new.weight": 1.0}),
    ("data.sources", {"data.sources.old.weight": 0.0, "data.sources.older.weight": 0.0}),
]  # fmt: skip


def test_sources_of_every_role_have_no_problem(config):
    assert list(find_problems(config)) == []
    assert (
        list(find_problems(edited(config, HOLD | {"replay.ratio": 0.2, "replay.watch": ["general"]}))) == []
    )


@pytest.mark.parametrize(("key", "edits"), RULES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_broken_rule_is_one_sentence_with_key_rule_value_and_fix(config, key, edits):
    (problem,) = find_problems(edited(config, edits))
    assert problem.key == key and problem.sentence.startswith(f"`{key}` must "), problem
    assert ", but " in problem.sentence and " instead. " in problem.sentence, problem
    assert problem.sentence.endswith("."), problem


@pytest.mark.parametrize(
    "asked", [{"replay.ratio": 0.1}, {"replay.shift": Shift.weak}, {"replay.kl.beta": 0.1}, HOLD]
)
def test_replay_without_a_replay_source_is_refused(config, asked):
    for name in ("old", "older"):
        del config.data.sources[name]
    (problem,) = find_problems(edited(config, asked))
    assert (
        "must have a source with role=replay" in problem.sentence and "Use replay=general" in problem.sentence
    )


def test_whole_numbers_are_points_too(config):
    assert list(find_problems(edited(config, PIECEWISE | {"replay.points": [[0, 0.1], [0.5, 0]]}))) == []


def test_a_ratio_of_zero_needs_no_replay_source(config):
    for name in ("old", "older"):
        del config.data.sources[name]
    assert list(find_problems(edited(config, {"replay.ratio": 0.0}))) == []


def test_sources_without_a_target_are_refused(config):
    for name in ("new", "more"):
        del config.data.sources[name]
    (problem,) = find_problems(config)
    assert "must have a source with role=target" in problem.sentence


def test_a_controller_without_anything_held_out_is_refused(config):
    del config.data.sources["general"]
    (problem,) = find_problems(edited(config, HOLD | {"data.validation_frac": 0.0}))
    assert problem.sentence.startswith("`data.validation_frac` must be more than 0")


@pytest.mark.parametrize(
    ("key", "edits", "says"),
    [
        ("replay.epsilon_kl", HOLD | REWARD | {"replay.epsilon_kl": 0.1}, "null with objective=reward"),
        ("replay.loss_weight", WEIGHED | {"replay.loss_weight": 2.0}, "give the rows of replay a weight"),
        ("replay.loss_weight", PAIRS | {"replay.loss_weight": 2.0}, "1 with objective=dpo"),
        ("replay.choice", LOSING | REWARD, "learns no tokens"),
        (
            "replay.choice",
            LOSING | PAIRS | {"data.sources.old.format": Format.preference},
            "learnt by no token",
        ),
        ("replay.choice", LOSING | PAIRS | {"objective.preference.text_weight": 0.0}, "learns no replay"),
    ],
)
def test_what_another_objective_cannot_do_with_replay_is_a_sentence(config, key, edits, says):
    found = [one.sentence for one in find_problems(edited(config, edits)) if one.key == key]
    assert len(found) == 1 and says in found[0] and f"`{key}` must be" in found[0]


@pytest.mark.parametrize(
    "edits",
    [
        LOSING,
        LOSING | WEIGHED,
        LOSING | PAIRS,
        {"replay.loss_weight": 2.0},
        HOLD | {"replay.epsilon_kl": 0.1},
    ],
)
def test_what_can_be_done_is_no_problem(config, edits):
    assert not [one.sentence for one in find_problems(edited(config, edits)) if one.key.startswith("replay")]


@pytest.mark.parametrize("edits", [LOSING, {"replay.loss_weight": 2.0}])
def test_nothing_can_be_chosen_or_weighed_without_replay(config, edits):
    for name in ("old", "older"):
        config.data.sources[name].role = Role.target
    (problem,) = find_problems(edited(config, edits))
    assert (
        problem.key == "data.sources"
        and "must have a source with role=replay for replay." in problem.sentence
    )
