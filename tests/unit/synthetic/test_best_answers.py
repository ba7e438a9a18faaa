"""What is written of sampled answers, and what a fake sampler and a fake verifier make of them."""

import pytest

from trainer.config.synthetic import SampledRows, SampleVerbConfig, SyntheticConfig
from trainer.errors import DataError
from trainer.synthetic.best_answers import (
    EMPTY,
    NO_ANSWER,
    NO_PAIR,
    NOT_KNOWN,
    OF_RATE,
    TOO_LONG,
    TRIAL_ANSWERS,
    Answer,
    AnswersMaker,
    UselessVerifier,
    choose,
    read_prompt,
)
from trainer.synthetic.given_rows import GivenRow
from trainer.synthetic.told import answer_lines
from trainer.synthetic.verifying import Verdict

SAID = {
    "mixed": ["good", "bad", "good two", "fail"],
    "none": ["bad", "bad", "", "bad"],
    "all": ["good", "good two", "good", "good"],
    "unknown": ["fail", "fail", "fail", "fail"],
    "cut": ["good cut", "bad", "bad", "bad"],
}


class FakeSampler:
    """Says what the prompt asks for; has no room for the prompt `long`."""

    def answers(self, prompts, num_answers, number):
        asked = [turns[-1]["content"] for turns in prompts]
        return [
            None
            if text == "long"
            else [Answer(said, said.endswith("cut")) for said in SAID[text]][:num_answers]
            for text in asked
        ]


def worth(one, said):
    return [
        Verdict(None, failure="cannot say")
        if answer.text == "fail"
        else Verdict(float("good" in answer.text))
        for answer in said
    ]


def prompts(*names):
    return [GivenRow(name or "empty", "f", {"prompt": name, "answer": "x", "level": 3}) for name in names]


def made(names, **changes):
    options = SyntheticConfig(sample=SampleVerbConfig(verifier="exact", num_answers=4, **changes))
    maker = AnswersMaker(options, FakeSampler(), worth, {"verb": "sample", "model": "d", "seed": 0})
    part = maker.make([read_prompt(row, options) for row in prompts(*names)], 0)
    return part, options.sample


ALL = ("mixed", "none", "all", "unknown", "cut", "long", "")


def test_the_best_answer_is_the_first_that_passed_and_was_not_cut():
    part, sample = made(ALL)
    assert [row["messages"] for row in part.rows] == [
        [{"role": "user", "content": name}, {"role": "assistant", "content": "good"}]
        for name in ("mixed", "all")
    ]
    provenance = part.rows[0]["provenance"]
    assert (provenance["parent"], provenance["known"], provenance["passed"]) == ("mixed", 3, 2)
    assert [note["dropped"] for note in part.notes] == [
        None, NO_ANSWER, None, NOT_KNOWN, NO_ANSWER, TOO_LONG, EMPTY,
    ]  # fmt: skip
    said = "\n".join(answer_lines(part.notes, sample, len(part.rows)))
    # 2/3, 0, 1, 1/4 of prompts with a verdict; the failed answers are in neither number
    assert "pass@1 47.9 %" in said and "4 prompts" in said
    assert "pass@4 66.7 %" in said and "pass@4 without 2 prompts that have fewer verdicts" in said
    assert "verifier failed on 5 answers, which count neither way" in said and "5 x it cannot say" in said
    assert "1 answer cut at" in said and "1 answer empty" in said


def test_pairs_are_of_an_answer_that_passed_and_one_that_did_not():
    part, _ = made(ALL, write=SampledRows.pairs)
    (pair,) = part.rows
    assert pair["prompt"] == [{"role": "user", "content": "mixed"}] and pair["margin"] == 1
    assert [pair[side][0]["content"] for side in ("chosen", "rejected")] == ["good", "bad"]
    assert part.notes[2]["dropped"] == NO_PAIR


def test_rates_keep_the_row_and_leave_out_what_is_too_easy_or_too_hard():
    part, _ = made(ALL, write=SampledRows.rates, min_rate=0.1, max_rate=0.9)
    assert [(row["prompt"], row["level"], row["pass_rate"]) for row in part.rows] == [
        ("mixed", 3, pytest.approx(2 / 3)), ("cut", 3, 0.25),
    ]  # fmt: skip
    assert [note["dropped"] for note in part.notes].count(OF_RATE) == 2


def test_a_reward_model_ranks_and_ties_make_no_pair():
    said = [Answer("a", False), Answer("b", False), Answer("c", True), Answer("", False)]
    sample = SampleVerbConfig(reward_model="folder")
    assert choose(said, [Verdict(0.5), Verdict(2.0), Verdict(9.0), Verdict(-9.0)], sample) == (1, 0)
    assert choose(said[:2], [Verdict(1.0), Verdict(1.0)], sample) == (0, None)
    assert choose(said[2:], [Verdict(1.0), Verdict(1.0)], sample) == (None, None)


def test_a_verifier_that_fails_every_answer_is_refused_and_one_that_fails_some_is_not():
    with pytest.raises(
        UselessVerifier, match=f"all of the first {TRIAL_ANSWERS} answers: it cannot say. Mend it"
    ):
        made(["unknown"] * (TRIAL_ANSWERS // 4 - 1) + ["unknown "[:7]] + ["unknown"])
    made(["mixed", *["unknown"] * TRIAL_ANSWERS])


def test_a_prompt_of_turns_ends_with_the_users_last_and_what_is_no_turn_is_named():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    options = SyntheticConfig(
        system="Be brief.", sample=SampleVerbConfig(verifier="exact", reference_column=None)
    )
    found = read_prompt(GivenRow("x", "f", {"prompt": turns}), options)
    assert found.turns == [{"role": "system", "content": "Be brief."}, turns[0]] and found.text == "a"
    with pytest.raises(DataError, match="texts or of turns with role and content, but f, line 2 has"):
        read_prompt(GivenRow("x", "f, line 2", {"prompt": [{"value": "a"}]}), options)
    asks = SyntheticConfig(sample=SampleVerbConfig(verifier="number", instruction="{prompt} {{}}"))
    assert (
        read_prompt(GivenRow("x", "f", {"prompt": "{q}", "answer": 3}), asks).turns[0]["content"] == "{q} {}"
    )
