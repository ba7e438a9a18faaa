"""The store of samples: the same bytes after any number of deaths, there whole or not at all, found again."""

import errno
import json
import os
import resource
import signal
from multiprocessing import get_context

import pytest
import torch

from tests.helpers.samples import STARTED, WordSampler, generate_words, judge_of
from tests.helpers.wait import LIMIT_S, wait_until
from trainer.dist.mesh import alone
from trainer.errors import DataError
from trainer.sample.generate import Tally, sample_batch
from trainer.sample.samples import (
    Batch,
    DraftOutcome,
    WorkFolder,
    check_samples,
    explained,
    find_store,
    try_lock,
)

ALONE = alone(torch.device("cpu"))
GOAL = 300


@pytest.fixture
def whole(tmp_path):
    """Return the folder of a store that was made without a stop."""
    target = tmp_path / "whole"
    assert generate_words(ALONE, target, GOAL, WordSampler()) is not None
    return target


def contents(target):
    return {path.name: path.read_bytes() for path in target.iterdir()}


def start(target, pause_s):
    process = get_context("fork").Process(
        target=generate_words, args=(ALONE, target, GOAL, WordSampler(pause_s))
    )
    process.start()
    return process


def test_a_store_holds_enough_and_its_counts_add_up(whole):
    meta = json.loads((whole / "meta.json").read_text())
    rows = [json.loads(line) for line in (whole / "generated.jsonl").read_text().splitlines()]
    counts = meta["counts"]
    assert set(counts["dropped"]) == {"duplicate", "too short"} == set(meta["dropped_examples"])
    assert counts["samples"] == 4 * counts["batches"] == counts["kept"] + sum(counts["dropped"].values())
    assert len(rows) == counts["kept"] == len({row["text"] for row in rows})
    assert counts["kept_tokens"] == sum(len(row["text"].split()) for row in rows)
    assert counts["kept_tokens"] >= GOAL
    assert [path.name for path in whole.parent.iterdir()] == ["whole"], "the work folder is still there"


def test_a_generation_killed_twice_gives_the_bytes_of_one_that_was_not(whole, tmp_path):
    target = tmp_path / "killed"
    part = tmp_path / ".killed.work" / "part-0.jsonl"
    for num_lines in (2, 4):
        process = start(target, 0.2)
        wait_until(
            lambda n=num_lines: part.exists() and part.read_bytes().count(b"\n") >= n,
            f"{num_lines} batches",
        )
        process.kill()
        process.join(LIMIT_S)
        assert process.exitcode == -signal.SIGKILL
        assert not target.exists(), "an unfinished store is in its place"
    # What a death in the middle of a write leaves behind.
    with part.open("ab") as file:
        file.write(part.read_bytes().splitlines(keepends=True)[0][:-9])
    before = part.read_bytes().count(b"\n")
    sampler = WordSampler()
    assert generate_words(ALONE, target, GOAL, sampler) is not None
    assert min(sampler.sampled) == before, "finished batches were sampled again"
    assert contents(target) == contents(whole)


def test_batches_that_more_ranks_left_behind_are_used_and_surplus_ones_are_not(whole, tmp_path):
    """A start of three ranks died; one rank goes on. Batch 1 is missing, 2 and 60 are there."""
    target = tmp_path / "fewer"
    work = WorkFolder(target)
    work.begin(STARTED)
    for rank, number in enumerate((0, 2, 60)):
        batch = sample_batch(WordSampler(), judge_of(GOAL), number, lambda: False)
        (work.path / f"part-{rank}.jsonl").write_bytes(batch.to_line())
    sampler = WordSampler()
    assert generate_words(ALONE, target, GOAL, sampler) is not None
    assert not {0, 2, 60} & set(sampler.sampled) and 1 in sampler.sampled
    assert contents(target) == contents(whole)


@pytest.mark.parametrize("other", [{"engine": "another"}, {"samples_key": "of other options"}])
def test_samples_that_were_asked_for_otherwise_are_thrown_away_and_an_earlier_plan_holds(
    tmp_path, caplog, other
):
    """A folder of one's own has no options in its name: samples of 32 tokens were taken for those of 64."""
    work = WorkFolder(tmp_path / "store")
    assert work.begin(STARTED) == STARTED
    (work.path / "part-0.jsonl").write_bytes(Batch(0, 0, 0.0, [], []).to_line())
    assert work.begin(STARTED | {"batch_size": 99}) == STARTED
    assert [batch.number for batch in work.batches()] == [0]
    assert not caplog.text
    assert work.begin(STARTED | other) == STARTED | other and list(work.batches()) == []
    assert "is of another engine, model or other options: it is thrown away" in caplog.text


def test_a_finished_store_is_found_and_anything_else_in_its_place_is_refused(whole, tmp_path):
    assert find_store(whole, "k")["key"] == "k"
    assert find_store(tmp_path / "nowhere", "k") is None
    (tmp_path / "empty").mkdir()
    assert find_store(tmp_path / "empty", "k") is None
    with pytest.raises(DataError, match="samples of another model or other options"):
        find_store(whole, "other")
    with (whole / "generated.jsonl").open("ab") as file:
        file.truncate(10)
    with pytest.raises(DataError, match=r"damaged store .* has 10 bytes"):
        find_store(whole, "k")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    with pytest.raises(DataError, match=r"no whole store of samples instead\. Give another folder"):
        find_store(tmp_path / "mine", "k")


def test_what_came_to_the_place_while_samples_were_made_is_left_alone(tmp_path):
    target = tmp_path / "taken"

    def came():
        target.mkdir(exist_ok=True)
        (target / "thesis.txt").write_text("words")
        return False

    with pytest.raises(DataError, match=r"holds what came there meanwhile instead\. Give another folder"):
        generate_words(ALONE, target, GOAL, WordSampler(), came)
    assert [path.name for path in target.iterdir()] == ["thesis.txt"]
    (target / "thesis.txt").unlink()
    sampler = WordSampler()
    assert generate_words(ALONE, target, GOAL, sampler) is not None and sampler.sampled == []


def flips(file):
    """Flip a bit at places all over a file, in turn; it is whole again afterwards."""
    original = file.read_bytes()
    for place in range(0, len(original), max(len(original) // 23, 1)):
        changed = bytearray(original)
        changed[place] ^= 2
        file.write_bytes(changed)
        yield
    file.write_bytes(original)


@pytest.mark.parametrize("name", ["generated.jsonl", "meta.json"])
def test_one_flipped_bit_of_finished_samples_is_found_here_and_before_they_are_prepared(name, whole):
    for _ in flips(whole / name):
        with pytest.raises(DataError, match=r"damaged store|no whole store"):
            find_store(whole, "k")
        with pytest.raises(DataError, match="must hold samples as they were written") as caught:
            check_samples(whole / "generated.jsonl")
        assert name in str(caught.value)
    check_samples(whole / "generated.jsonl")


def test_one_flipped_bit_of_an_unfinished_line_costs_its_batch_and_is_said(whole, tmp_path, caplog):
    target = tmp_path / "flipped"
    work = WorkFolder(target)
    work.begin(STARTED)
    lines = [sample_batch(WordSampler(), judge_of(GOAL), n, lambda: False).to_line() for n in range(3)]
    part = work.path / "part-0.jsonl"
    part.write_bytes(lines[1])
    for _ in flips(part):
        assert list(work.batches()) == []
    broken = bytearray(lines[1])
    broken[len(broken) // 2] ^= 1
    part.write_bytes(lines[0] + bytes(broken) + lines[2])
    assert [batch.number for batch in work.batches()] == [0, 2]
    assert "part-0.jsonl, line 2 is not as it was written: sampled again" in caplog.text
    sampler = WordSampler()
    assert generate_words(ALONE, target, GOAL, sampler) is not None
    assert 1 in sampler.sampled and not {0, 2} & set(sampler.sampled)
    assert contents(target) == contents(whole)


def test_one_flipped_bit_of_the_plan_throws_the_work_away_and_is_said(tmp_path, caplog):
    work = WorkFolder(tmp_path / "store")
    work.begin(STARTED)
    for _ in flips(work.path / "plan.json"):
        caplog.clear()
        (work.path / "part-0.jsonl").write_bytes(Batch(0, 0, 0.0, [], []).to_line())
        assert work.begin(STARTED) == STARTED and list(work.batches()) == []
        assert "plan.json is damaged" in caplog.text


def test_one_process_at_a_time_holds_the_lock_and_death_lets_it_go(tmp_path):
    first = try_lock(tmp_path / "store")
    assert first is not None and try_lock(tmp_path / "store") is None
    first.close()
    assert try_lock(tmp_path / "store") is not None


def test_a_stop_keeps_what_was_sampled(tmp_path, whole):
    target = tmp_path / "stopped"
    sampler = WordSampler()
    assert generate_words(ALONE, target, GOAL, sampler, lambda: len(sampler.sampled) == 3) is None
    assert len(sampler.sampled) == 3 and not target.exists()
    assert generate_words(ALONE, target, GOAL, sampler) is not None
    assert sampler.sampled[:4] == [0, 1, 2, 3] and contents(target) == contents(whole)


def test_a_full_disk_is_a_sentence_and_the_next_start_goes_on(tmp_path, whole):
    """The file-size limit of the process stands for the disk: the write fails in the middle of a line."""
    target = tmp_path / "full"
    old_signal = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    old_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2500, old_limit[1]))
    try:
        with pytest.raises(DataError, match="must have room for the samples"), explained(target):
            generate_words(ALONE, target, GOAL, WordSampler())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_signal)
    assert not target.exists()
    sampler = WordSampler()
    assert generate_words(ALONE, target, GOAL, sampler) is not None
    assert sampler.sampled[0] > 0 and contents(target) == contents(whole)


@pytest.mark.parametrize(
    ("code", "part"),
    [
        (errno.ENOSPC, "has none left. Free some"),
        (errno.EDQUOT, "has none left. Free some"),
        (errno.EACCES, "a folder you can write to"),
    ],
)
def test_errors_of_the_file_system_name_the_key(tmp_path, code, part):
    with pytest.raises(DataError) as error, explained(tmp_path):
        raise OSError(code, os.strerror(code))
    assert part in str(error.value) and str(error.value).startswith("`data.cache_dir`")
    with pytest.raises(OSError, match="Input/output"), explained(tmp_path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_sampling_that_keeps_next_to_nothing_ends_with_the_reasons():
    tally = Tally()
    for number in range(16):
        outcomes = [DraftOutcome(5, f"{number}-{row}", "not ended") for row in range(16)]
        if number == 0:
            outcomes[0] = DraftOutcome(5, "kept", None)
        tally.check_yield()
        tally.add(Batch(number, 80, 1.0, outcomes, []))
    with pytest.raises(DataError, match=r"kept 1 of 256 \(not ended: 255\)"):
        tally.check_yield()
