"""What Optuna is asked and told."""

import pytest

pytest.importorskip("optuna")
from hydra.core.override_parser.overrides_parser import OverridesParser

from launch.points import Goal
from launch.search import Search
from trainer.config.sweep import SweepConfig, SweepSampler
from trainer.errors import ConfigError


def search(*words, **fields):
    config = SweepConfig(**{"trials": 8, **fields})
    return Search(OverridesParser.create().parse_overrides(list(words)), config, Goal.of(config))


def asked(study, num_points=4):
    return [dict(word.split("=", 1) for word in words) for words in study.ask(num_points)]


def test_every_kind_of_sweep_is_chosen_from():
    study = search(
        "optim.lr=tag(log,interval(1e-6,1e-3))",
        "train.max_steps=int(interval(5,9))",
        "seed=range(0,10,3)",
        "schedule.final_frac=range(0.0,1.0,0.25)",
        "zero=zero1,zero2",
        "model=choice(tiny)",
        "data=text",
    )
    for point in asked(study, 8):
        assert 1e-6 <= float(point["optim.lr"]) <= 1e-3
        assert int(point["train.max_steps"]) in range(5, 10)
        assert int(point["seed"]) in (0, 3, 6, 9)
        assert float(point["schedule.final_frac"]) in (0.0, 0.25, 0.5, 0.75)
        assert point["zero"] in ("zero1", "zero2") and point["model"] == "tiny" and point["data"] == "text"


@pytest.mark.parametrize("words", ["optim.lr=interval(1,0)", "optim.lr=tag(log,interval(0,1))"])
def test_what_cannot_be_chosen_from_is_a_sentence(words):
    with pytest.raises(ConfigError, match=r"`optim\.lr` must be an interval with its lower end first"):
        search(words)


def test_points_of_an_earlier_start_are_not_chosen_again_and_what_failed_is_tried_first():
    """With the same seed the sampler would begin with the same points."""
    first = search("optim.lr=interval(0.0,1.0)")
    points = asked(first, 4)
    first.tell([float(point["optim.lr"]) for point in points[:3]] + [None])
    assert first.num_left == 4 and first.num_good == 3
    second = search("optim.lr=interval(0.0,1.0)")
    for point in points[:3]:
        second.remember(point, float(point["optim.lr"]))
    second.remember(points[3], None)
    assert second.num_left == 5
    again = asked(second, 5)
    assert again[0] == points[3]
    assert not [point for point in again[1:] if point in points]


def test_a_point_outside_of_what_is_asked_for_now_is_passed_over():
    study = search("optim.lr=interval(0.5,1.0)")
    study.remember({"optim.lr": "0.1"}, 1.0)
    study.remember({"optim.lr": "fast"}, 1.0)
    assert study.num_left == 8 and study.num_good == 0


def test_the_better_end_is_found():
    """A parabola: after 30 points, most of the last ten are near its minimum; a wrong sign would avoid it."""
    study = search("optim.lr=interval(-10.0,10.0)", trials=40, sampler=SweepSampler.tpe)
    while study.num_left:
        points = [float(point["optim.lr"]) for point in asked(study, 4)]
        study.tell([(point - 3) ** 2 for point in points])
    last = [float(point["optim.lr"]) for point in asked(study, 8)]
    assert sum(abs(point - 3) < 3 for point in last) >= 5
