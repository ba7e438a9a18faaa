"""Names of points, the record of a sweep, and the objective of a run."""

import json

import pytest

from launch.points import Goal, Point, Record, point_name, read_record, write_record
from trainer.config.metric import Direction
from trainer.config.sweep import ObjectiveValue
from trainer.errors import ConfigError

LAST = Goal("eval_mean", ObjectiveValue.last, Direction.minimize)
BEST = Goal("eval_mean", ObjectiveValue.best, Direction.minimize)
HIGHEST = Goal("eval_mean", ObjectiveValue.best, Direction.maximize)


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"optim.lr": "1e-05", "replay.ratio": "0.01"}, "007_lr-1e-05_ratio-0.01"),
        ({"optim.lr": "5.1763404298758343e-05"}, "007_lr-5.176e-05"),
        ({"model": "qwen3_8b", "zero": "zero3"}, "007_model-qwen3-8b_zero-zero3"),
        ({"optim.lr": "1", "other.lr": "2"}, "007_optim.lr-1_other.lr-2"),
        ({"data.sources.corpus.path": "'/data/a=b,c/x y.jsonl'"}, "007_path-data-a-b-c-x-y.jsonl"),
        ({"train.max_steps": "null", "optim.betas": "[0.9,0.95]"}, "007_max-steps-null_betas-0.9-0.95"),
        ({"model.path": "/" + "long/" * 40}, None),
    ],
)
def test_a_name_tells_the_point_and_is_safe_everywhere(params, name):
    """No `=`, `,` or `:`, which Hydra, SLURM's options and mounts of containers would read."""
    made = point_name(7, params)
    assert name is None or made == name
    assert len(made) <= 96 and not set(made) - set(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.+-"
    )


def test_the_record_is_read_as_it_was_written(tmp_path):
    record = Record(
        "rates", BEST, [Point("001_lr-1", {"optim.lr": "1"}), Point("002_lr-2", {"optim.lr": "2"})]
    )
    write_record(tmp_path, record, [{"state": "finished"}, {"state": "pending"}], "001_lr-1")
    assert read_record(tmp_path) == record
    assert json.loads((tmp_path / "sweep.json").read_text())["points"][1]["state"] == "pending"
    assert read_record(tmp_path / "elsewhere") is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": "a", "goal": {"objective": "a"}, "points": []}'])
def test_another_file_of_that_name_is_a_sentence(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(ConfigError, match="must be what a sweep wrote"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    ("rows", "last", "best", "highest"),
    [
        ([], None, None, None),
        ([{"step": 0, "eval_mean": 1.0}], None, None, None),
        ([{"step": 0, "eval_mean": 0.1}, {"step": 5, "eval_mean": 2}, {"step": 9, "eval_mean": 3}], 3, 2, 3),
        ([{"step": 5, "eval_mean": 2.0}, {"step": 9, "eval_mean": "NaN"}], None, 2.0, 2.0),
        ([{"step": 5, "eval_mean": 2.0}, {"step": 9, "loss": 1.0}], 2.0, 2.0, 2.0),
    ],
    ids=[
        "nothing",
        "only the base",
        "the base does not count",
        "not finite at the end",
        "other rows between",
    ],
)
def test_the_objective_is_the_last_or_best_number_that_was_logged_of_the_trained_model(
    tmp_path, rows, last, best, highest
):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [goal.measure(tmp_path) for goal in (LAST, BEST, HIGHEST)] == [last, best, highest]
