"""A judge asked in both orders: what its place alone decides is dropped and counted."""

import math

import pytest

from trainer.config.synthetic import JudgeConfig, SyntheticConfig
from trainer.synthetic.given_rows import GivenRow
from trainer.synthetic.order_bias import (
    ALIKE,
    EMPTY,
    INCONSISTENT,
    TIE,
    TOO_LONG,
    OrderedJudge,
    Preference,
    read_two,
)
from trainer.synthetic.told import judge_lines

WORTH = {"great": 3.0, "good": 1.0, "fair": 0.9, "bad": -1.0}
BIAS = 0.5


def letters(question, begins):
    """Give log-probabilities of a judge who likes A by 0.5 nats and knows what answers are worth; 0.9 in all."""
    a, b = (question.partition(f"Answer {letter}: ")[2].partition("\n")[0] for letter in "AB")
    if "long" in (a, b):
        return None
    odds = WORTH[a] - WORTH[b] + BIAS
    share = 1 / (1 + math.exp(-odds))
    return math.log(0.9 * share), math.log(0.9 * (1 - share))


def made(*answers, **changes):
    options = SyntheticConfig(judge=JudgeConfig(**changes))
    rows = [
        GivenRow(f"r{n}", "f", {"prompt": "Say it", "chosen": one, "rejected": other})
        for n, (one, other) in enumerate(answers)
    ]
    judge = OrderedJudge(options, letters, {"verb": "judge"}, ["Be kind."])
    return judge.make([read_two(row, options) for row in rows], 0)


def test_what_the_place_decides_is_dropped_and_the_rest_are_pairs_with_the_margin_without_it():
    part = made(
        ("great", "bad"), ("bad", "good"), ("good", "fair"), ("good", "good"), ("good", "long"), ("", "bad")
    )
    assert [(row["chosen"], row["rejected"], round(row["margin"], 9)) for row in part.rows] == [
        ("great", "bad", 4.0), ("good", "bad", 2.0),
    ]  # fmt: skip
    assert [note.get("dropped") for note in part.notes] == [None, None, INCONSISTENT, ALIKE, TOO_LONG, EMPTY]
    assert part.rows[0]["provenance"]["log_odds"] == pytest.approx([4.5, 3.5])
    assert (
        part.rows[0]["provenance"]["principle"] == "Be kind." and part.rows[0]["provenance"]["parent"] == "r0"
    )
    said = "\n".join(judge_lines(part.notes, first_is_better=True))
    assert "position consistency: 66.7 %" in said and "2 of 3" in said
    assert "log-odds of A for its place alone: +0.500 nats" in said and "with probability 0.9" in said
    assert "agreement with people where both orders agree: 50.0 %" in said
    assert "by the mean of both orders: 66.7 %" in said


def test_a_margin_that_is_asked_for_makes_the_rest_ties():
    part = made(("great", "bad"), ("bad", "good"), min_margin=2.5)
    assert len(part.rows) == 1 and part.notes[1]["dropped"] == TIE


def test_even_odds_are_consistent_and_a_tie():
    even = Preference((-1.0, -1.0), (-2.0, -2.0))
    assert even.is_consistent and even.margin == 0 and even.mass == pytest.approx(math.exp(-1) + math.exp(-2))
    assert not Preference((-1.0, -2.0), (-1.0, -1.0)).is_consistent


def test_turns_are_judged_by_their_words_and_written_as_they_are():
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in ("great", "bad"))
    options = SyntheticConfig()
    prompt = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Go"},
    ]
    row = GivenRow("r", "f", {"prompt": prompt, "chosen": rejected, "rejected": chosen})
    two = read_two(row, options)
    assert two.asked == "user: Hi\n\nassistant: Yes?\n\nuser: Go" and two.texts == ("bad", "great")
    (pair,) = OrderedJudge(options, letters, {}).make([two], 0).rows
    assert pair["prompt"] == prompt and pair["chosen"] == chosen and pair["rejected"] == rejected
