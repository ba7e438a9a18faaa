"""A file of rows grows part by part: killed and begun again it is the same, and nobody else's file is touched."""

import json
import multiprocessing
import os
import signal

import pytest

from trainer.errors import DataError
from trainer.synthetic.made_file import MadeFile, MadePart, begun_facts, line_of, part_of

NUM_PARTS = 5


def make(number):
    return MadePart([{"n": number, "text": "ä\ud800"}] * (number % 3), [{"note": number}])


def finish(target, decided_by=None, asked=None):
    made = MadeFile(target, "raft", decided_by or {"seed": 0})
    assert made.find() is None

    def noted(number):
        if asked is not None:
            asked.append(number)
        return make(number)

    with made.claimed():
        notes = made.make(NUM_PARTS, noted, lambda: False, lambda done: None)
        assert notes == [{"note": number} for number in range(NUM_PARTS)]
        return made.publish({"version": 1}, lambda num_rows: [f"{num_rows} rows"])


def be_killed(target, at):
    """Make parts, and be killed at one of them with half of its line written."""
    made = MadeFile(target, "raft", {"seed": 0})

    def kill(number):
        if number == at:
            with (made._work / "parts.jsonl").open("ab") as parts:
                parts.write(line_of(at, make(at))[:-4])
            os.kill(os.getpid(), signal.SIGKILL)
        return make(number)

    with made.claimed():
        made.make(NUM_PARTS, kill, lambda: False, lambda done: None)


@pytest.mark.parametrize("at", [0, 1, 4])
def test_killed_at_any_part_and_begun_again_it_is_the_same_file(tmp_path, at):
    whole = tmp_path / "whole.jsonl"
    finish(whole)
    target = tmp_path / "killed.jsonl"
    child = multiprocessing.get_context("fork").Process(target=be_killed, args=(target, at))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL and not target.exists()
    asked: list[int] = []
    meta = finish(target, asked=asked)
    assert asked == list(range(at, NUM_PARTS))
    assert target.read_bytes() == whole.read_bytes() and target.read_text().count("\n") == meta["rows"] == 4
    assert meta["report"] == ["4 rows"] and begun_facts(str(target)) == {"seed": 0}
    assert sorted(one.name for one in tmp_path.iterdir() if "killed" in one.name) == [
        ".killed.jsonl.lock", "killed.jsonl", "killed.jsonl.meta",
    ]  # fmt: skip


def test_a_line_that_is_not_as_it_was_written_is_made_again(tmp_path, caplog):
    target = tmp_path / "a.jsonl"
    made = MadeFile(target, "raft", {"seed": 0})
    with made.claimed():
        assert made.make(NUM_PARTS, make, iter([False] * 3 + [True]).__next__, lambda done: None) is None
    parts = made._work / "parts.jsonl"
    lines = parts.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"n":1', b'"n":7')
    parts.write_bytes(b"".join(lines))
    asked: list[int] = []
    finish(target, asked=asked)
    assert asked == [1, 3, 4] and "line 2 is not as it was written: made again" in caplog.text
    assert [json.loads(line)["n"] for line in target.read_text().splitlines()] == [1, 2, 2, 4]
    assert part_of(lines[1]) is None and part_of(lines[2])[0] == 2


def test_what_is_there_is_found_and_what_others_made_is_refused(tmp_path):
    target = tmp_path / "a.jsonl"
    meta = finish(target)
    assert MadeFile(target, "raft", {"seed": 0}).find() == meta
    for verb, decided_by in (("raft", {"seed": 1}), ("judge", {"seed": 0})):
        with pytest.raises(DataError, match="holds rows that were made of others, by another model or with"):
            MadeFile(target, verb, decided_by).find()
    target.write_text(target.read_text() + "{}\n")
    with pytest.raises(DataError, match=r"holds rows that were changed since instead. Give another file, or"):
        MadeFile(target, "raft", {"seed": 0}).find()
    strange = tmp_path / "b.jsonl"
    strange.write_text("mine")
    with pytest.raises(DataError, match="holds a file that no data command wrote"):
        MadeFile(strange, "raft", {}).find()
    assert strange.read_text() == "mine"


def test_work_of_other_words_and_a_place_that_another_process_has_are_refused(tmp_path):
    target = tmp_path / "a.jsonl"
    made = MadeFile(target, "raft", {"seed": 0})
    with made.claimed():
        assert made.make(2, make, iter([False, True]).__next__, lambda done: None) is None
        with pytest.raises(DataError, match="that no other process makes"), made.claimed():
            pass
    other = MadeFile(target, "raft", {"seed": 1})
    with (
        other.claimed(),
        pytest.raises(DataError, match="holds what was begun with other rows, another model"),
    ):
        other.make(2, make, lambda: False, lambda done: None)
    made.clear()
    finish(target, {"seed": 1})


def test_rows_can_be_left_out_once_all_are_there(tmp_path):
    made = MadeFile(tmp_path / "a.jsonl", "questions", {})
    with made.claimed():
        made.make(NUM_PARTS, make, lambda: False, lambda done: None)
        seen: set[int] = set()
        meta = made.publish(
            {}, lambda n: [], lambda: lambda row: not (row["n"] in seen or seen.add(row["n"]))
        )
    assert meta["rows"] == 3
