"""Retention, the state file and the space check."""

import dataclasses
import json
import shutil
from collections import namedtuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.checkpoint.test_commit import manifest, save
from trainer.checkpoint.layout import MANIFEST, find_checkpoints, rng_file, step_dir, step_of
from trainer.checkpoint.prune import Retention, prune, superseded
from trainer.checkpoint.space import Demand, check_space, demand, make_room, most_saves
from trainer.checkpoint.state import CHOICE, PARTS, TrainState, read_state, write_state
from trainer.config.train import BestConfig, CheckpointConfig
from trainer.errors import CheckpointError, DamagedError
from trainer.mix.plan import Cursor
from trainer.mix.replay_choice import Choice
from trainer.rounds.rounds import RoundNote
from trainer.run.during import Budget


def steps_left(run_dir):
    return [step_of(folder) for folder in find_checkpoints(run_dir)]


def gone_of(steps, keep_last, every, best):
    return superseded(
        [(step, "one") for step in steps], (max(steps), "one"), Retention(keep_last, every, best)
    )


def test_the_newest_the_best_and_the_kept_ones_stay():
    steps = [10, 20, 30, 40, 50, 60]
    assert gone_of(steps, 2, None, None) == [10, 20, 30, 40]
    assert gone_of(steps, 2, None, 20) == [10, 30, 40]
    assert gone_of(steps, 1, 20, 10) == [30, 50]
    assert gone_of([10], 2, None, None) == []


def test_a_line_is_pruned_by_its_own_checkpoints_alone():
    """Counting newer ones of a run that was given up would remove each new checkpoint as soon as it is there."""
    old = [(step, "old") for step in (100, 200, 300)]
    found = [*old, (2, "new"), (4, "new"), (6, "new"), (900, "new")]
    assert superseded(found, (6, "new"), Retention(2, None, None)) == [2]
    assert superseded(old, (2, "new"), Retention(1, None, None)) == []


entries = st.sets(st.tuples(st.integers(0, 60), st.sampled_from(["one", "two", "torn"])))


@given(entries, st.integers(0, 60), st.integers(1, 5), st.integers(1, 10) | st.none(), st.integers(0, 60))
def test_pruning_takes_only_older_ones_of_the_line_and_never_the_newest_or_the_best(
    found, last, keep_last, every, best
):
    retention = Retention(keep_last, every, best)
    gone = superseded(sorted(found), (last, "one"), retention)
    line = {step for step, run in found if run == "one" and step <= last} | {last}
    assert set(gone) < line and last not in gone and best not in gone
    left = line - set(gone)
    assert len(left) >= min(keep_last, len(line))
    assert max(gone, default=-1) < min(sorted(line)[-keep_last:])
    assert not every or not any(step and step % every == 0 for step in gone)
    rest = [(step, "one") for step in left] + [entry for entry in found if entry[1] != "one"]
    assert superseded(rest, (last, "one"), retention) == []


def test_pruning_counts_only_valid_checkpoints_and_keeps_the_best(tmp_path):
    """Counting a torn one among the newest would remove the last checkpoint that can be resumed."""
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step)
    for torn in (4, 5):
        (step_dir(tmp_path, torn) / MANIFEST).write_text("{")
    assert prune(tmp_path, manifest(3), Retention(1, None, best_step=1)) == [2]
    assert steps_left(tmp_path) == [5, 4, 3, 1]


def test_checkpoints_of_another_run_neither_go_nor_count(tmp_path):
    for step in (50, 60):
        save(tmp_path, step, run="old")
    for step in (2, 4):
        save(tmp_path, step, run="new")
        assert prune(tmp_path, manifest(step, run="new"), Retention(1, None, None)) == (
            [2] if step == 4 else []
        )
    assert steps_left(tmp_path) == [60, 50, 4]


def test_a_removal_that_is_interrupted_leaves_nothing_that_looks_valid(tmp_path, monkeypatch):
    for step in (1, 2):
        save(tmp_path, step)
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
    assert prune(tmp_path, manifest(2), Retention(1, None, None)) == [1]
    assert steps_left(tmp_path) == [2, 1]
    assert not (step_dir(tmp_path, 1) / MANIFEST).exists()


def test_the_state_makes_a_round_trip(tmp_path):
    state = TrainState(
        step=7,
        tokens_seen=2**53 - 1,
        targets_by_source={"chat": 3, "text": 9},
        data_digest="ab",
        best_loss=0.1 + 0.2,
        best_step=5,
        last_losses={"chat": 1 / 3},
    )
    write_state(tmp_path / "state.json", state)
    assert read_state(tmp_path / "state.json") == state
    assert set(json.loads((tmp_path / "state.json").read_text())) == {
        "version",
        *(field.name for field in dataclasses.fields(TrainState)),
    }


ODD = (
    None,
    True,
    -1,
    2**80,
    1e400,
    float("nan"),
    "",
    "x" * 300,
    [],
    {},
    [[]],
    [[1]],
    {"": None},
    ["x"],
    {"a": [0]},
)


def test_an_odd_value_at_any_place_of_the_state_is_a_sentence_or_the_kind_that_a_run_writes(tmp_path):
    """Whoever sealed it: a traceback, or a run that goes on from the beginning of its data, came of these."""
    plan = dataclasses.asdict(Cursor(3, [4, 1], [90, 20], -5))
    during = Budget(9.0, 1.0, 0.5, True).to_plain()
    choice = Choice(2, "old", 4, [1, 0], 1, 2, 0.5, 0.25)
    good = TrainState(
        step=3,
        tokens_seen=9,
        plan=plan,
        during=during,
        ratio_changes=[[2, 0.1]],
        usual={"loss": [1.0]},
        choices=[choice.to_plain()],
    )
    path = tmp_path / "state.json"
    write_state(path, good)
    assert read_state(path, 3) == good
    record, refused = json.loads(path.read_text()), 0
    places = [(key,) for key in record] + [(part, key) for part in PARTS for key in record[part]]
    for place in places:
        for odd in ODD:
            changed = json.loads(json.dumps(record))
            inner = changed if len(place) == 1 else changed[place[0]]
            inner[place[-1]] = odd
            path.write_text(json.dumps(changed))
            try:
                found = read_state(path, 3)
            except CheckpointError as error:
                assert str(path) in str(error)
                refused += 1
                continue
            if found.plan:
                Cursor(**found.plan).copy()
            Budget(**found.during)
            assert all(Choice(**one) for one in found.choices)
            assert found.step == 3 and all(at >= 0 for at, _ in found.ratio_changes), (place, odd)
    assert refused > 300
    for text in ("", "[" * 100_000, "[]", "{}", "3", json.dumps(record | {"colour": 1}), "\xff{"):
        path.write_text(text)
        with pytest.raises(DamagedError, match=r"state\.json"):
            read_state(path)


def test_the_parts_of_a_state_are_those_that_are_kept_in_it():
    assert [list(kinds) for kinds in PARTS.values()] == [
        [field.name for field in dataclasses.fields(kind)] for kind in (Cursor, RoundNote, Budget)
    ]
    assert list(CHOICE) == [field.name for field in dataclasses.fields(Choice)]


def test_a_state_of_another_step_than_its_checkpoint_or_its_data_is_refused(tmp_path):
    path = tmp_path / "state.json"
    for step, of_plan in ((3, 3), (2, 2), (3, 2)):
        write_state(path, TrainState(step=step, plan=dataclasses.asdict(Cursor(of_plan, [1], [1]))))
        if (step, of_plan) == (3, 3):
            assert read_state(path, 3).step == 3
            continue
        with pytest.raises(DamagedError, match="must be of one step of a run, but its numbers are of 2, 3"):
            read_state(path, 3)


def test_a_state_of_another_version_is_refused(tmp_path):
    path = tmp_path / "state.json"
    write_state(path, TrainState())
    path.write_text(path.read_text().replace('"version": 3', '"version": 9'))
    with pytest.raises(CheckpointError, match="must be of format version 3, but is 9 instead"):
        read_state(path)


def test_a_disk_that_cannot_hold_the_checkpoints_is_refused_before_the_run(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(450e9))
    run_dir = tmp_path / "not" / "there"
    check_space(run_dir, 8_000_000_000, demand(run_dir, CheckpointConfig(), 100))
    with pytest.raises(CheckpointError) as caught:
        check_space(run_dir, 8_000_000_000, demand(run_dir, CheckpointConfig(keep_last=3), 100))
    assert str(caught.value) == (
        "`run_dir` must have room for 5 checkpoints at once (480.0 GB: 3 by checkpoint.keep_last, the best by "
        f"checkpoint.keep_best, one in writing; saves come by time), but the disk of {run_dir} has 450.0 GB left "
        "instead. Choose a larger disk, lower checkpoint.keep_last, or save once, at the end, with "
        "checkpoint.every_steps=0."
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(7_000))
    with pytest.raises(
        CheckpointError, match=r"1 checkpoint at once \(12.0 kB: so\), .* has 7.0 kB left .* disk\.$"
    ):
        check_space(run_dir, 1_000, Demand(1, "so"))


def test_a_run_needs_no_room_for_checkpoints_that_it_never_writes(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(13_000))
    for options in (
        CheckpointConfig(every_steps=0),
        CheckpointConfig(every_steps=20),
        CheckpointConfig(every_steps=10),
    ):
        num_steps = 20 if options.every_steps != 10 else 10
        make_room(tmp_path, options, 100, False, num_trainable=1_000, num_steps=num_steps)
    with pytest.raises(CheckpointError, match=r"2 checkpoints .*: all that can be written up to step 20\)"):
        make_room(tmp_path, CheckpointConfig(every_steps=10), 100, False, num_trainable=1_000, num_steps=20)
    step_dir(tmp_path, 10).mkdir(parents=True)
    make_room(tmp_path, CheckpointConfig(every_steps=10, keep_every_steps=10), 100, True, 1_000, num_steps=20)
    assert [most_saves(None, 3, 1), most_saves(4, 10, 4), most_saves(4, 8, 8), most_saves(0, 8, 8)] == [
        2,
        2,
        0,
        0,
    ]


def test_rank_files_sort_by_rank():
    assert sorted(map(rng_file, (10, 9, 100))) == [rng_file(9), rng_file(10), rng_file(100)]


def test_a_resumed_run_needs_no_room_for_the_checkpoints_that_are_there(tmp_path):
    """A disk that held the run so far must not stop its next attempt."""
    by_time = CheckpointConfig()
    assert demand(tmp_path, by_time, 100).num == 4
    for num, step in enumerate((2, 4, 6, 8), start=1):
        step_dir(tmp_path, step).mkdir(parents=True)
        assert demand(tmp_path, by_time, 100).num == max(4 - num, 1)
    assert demand(tmp_path, by_time, 100).why.endswith("one in writing, less 3 there; saves come by time")
    assert demand(tmp_path, by_time, 100, goes_on=False).num == 4, "what is given up makes no room"
    assert demand(tmp_path, CheckpointConfig(keep_every_steps=2), 100).num == 4


@pytest.mark.parametrize(
    ("options", "evaluate_every", "num_steps", "num"),
    [
        ({}, 100, None, 4),
        ({}, 100, 300, 4),
        ({}, 100, 6, 3),
        ({}, 0, 300, 3),
        ({}, 100, 2, 2),
        ({"best": BestConfig("tasks/arc/acc")}, 0, 300, 4),
        ({"every_steps": 100}, 0, 300, 3),
        ({"every_steps": 100}, 0, 400, 4),
        ({"every_steps": 0}, 100, 300, 1),
        ({"keep_best": False}, 100, 300, 3),
    ],
)
def test_room_is_asked_for_what_can_be_there_at_once(tmp_path, options, evaluate_every, num_steps, num):
    """Six steps saved by time asked for four: the best could only be the last of them."""
    assert demand(tmp_path, CheckpointConfig(**options), evaluate_every, num_steps=num_steps).num == num
