"""Verifiers: what they take for right, and one that hangs, crashes or says nothing has failed and scored no zero."""

import math
import os

import pytest

from trainer.errors import ConfigError
from trainer.synthetic.pass_rates import pass_at, pass_rate
from trainer.synthetic.verifier_process import VerifierProcess
from trainer.synthetic.verifying import check_answer, letter_in, number_in, verdict_of

CODE = """
import os, time
def judge(prompt, answer, row):
    if answer == "hang":
        while True: time.sleep(1000)
    if answer == "die":
        os._exit(3)
    if answer == "raise":
        raise ValueError("no such thing")
    if answer == "none":
        return None
    print("verifiers may print")
    return len(answer) / row["most"] if answer != "right" else prompt == "p"
number = 4
"""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("#### 42", 42), ("so 3 + 4\n#### 1,234.50", 1234.5), ("it is 12, no 13.", 13), ("costs $1,000", 1000),
        ("-7", -7), ("5-3", 3), ("about .5", 0.5), ("1,2345", 2345), ("#### 8 of 9", 8), ("none", None), ("####", None),
    ],
)  # fmt: skip
def test_a_number_is_that_behind_the_mark_or_the_last(text, found):
    assert (number_in(text) if found is None else float(number_in(text))) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("B", "B"), ("(c) because", "C"), ("The answer is (D).", "D"), ("Answer: a", "A"), ("B. It is so", "B"),
        ("A cat is not a dog", None), ("I think the answer is B, no, the answer is **C**", "C"), ("", None),
    ],
)  # fmt: skip
def test_a_choice_is_the_letter_that_is_said_to_be_the_answer(text, found):
    assert letter_in(text) == found


def test_built_in_verifiers():
    assert check_answer("exact", None, " The  Moon. ", "the moon").score == 1
    assert check_answer("exact", "Answer: (.*)", "well\nAnswer: moon", "Moon").score == 1
    assert check_answer("exact", "Answer: (.*)", "moon", "Moon").score == 0
    assert check_answer("number", None, "it is 7.0", "#### 7").score == 1
    assert check_answer("number", None, "nothing", "#### 7").note == "no number"
    assert check_answer("number", None, "7", "seven").score is None
    assert check_answer("choice", None, "The answer is (b)", "B").score == 1
    assert check_answer("regex", r"^{reference}\b", "a.c d", "a.c").score == 1
    assert check_answer("regex", r"^{reference}\b", "abc d", "a.c").score == 0
    for value in (None, "1", math.nan, math.inf, [1]):
        assert verdict_of(value).score is None
    assert verdict_of(True).score == 1 and verdict_of(-2).score == -2


def test_a_function_that_hangs_dies_or_raises_has_failed_and_the_next_answer_is_judged(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    verifier = VerifierProcess("mine:judge", None, 0.5)
    try:

        def ask(answer):
            return verifier.check("p", answer, {"most": 4}, "")

        assert ask("right").score == 1 and ask("ab").score == 0.5
        assert ask("hang").failure == "has not answered within 0.5 s" and ask("hang").score is None
        assert ask("ab").score == 0.5
        assert ask("die").failure == "ended its process (code 3)" and ask("abcd").score == 1
        assert ask("raise").failure == "raised ValueError (no such thing)"
        assert ask("none").failure.startswith("returned None")
        assert len(verifier.digest) == 64
    finally:
        verifier.close()
    with pytest.raises(ProcessLookupError):
        os.kill(verifier._process.pid, 0)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("absent_module:judge", "No module named 'absent_module'"),
        ("mine:nothing", "has no attribute 'nothing'"),
        ("mine:number", "number is no function"),
        ("broken:judge", "SyntaxError"),
    ],
)
def test_a_function_that_cannot_be_loaded_is_refused(tmp_path, monkeypatch, name, why):
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "broken.py").write_text("def (")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="must name a function that can be loaded") as caught:
        VerifierProcess(name, None, 1.0)
    assert why in str(caught.value)


def test_a_pattern_that_never_ends_is_ended():
    verifier = VerifierProcess("regex", r"(a+)+$", 0.5)
    try:
        assert verifier.check("", "a" * 60 + "b", {}, "").failure == "has not answered within 0.5 s"
        assert verifier.check("", "aa", {}, "").score == 1
    finally:
        verifier.close()


def test_pass_at_k_is_unbiased():
    """Of 4 answers 1 passed: a draw of 2 misses it in 3 of 6 cases."""
    assert pass_at(4, 1, 2) == 0.5 and pass_at(4, 1, 1) == 0.25 and pass_at(4, 4, 2) == pass_at(2, 1, 2) == 1
    assert pass_at(4, 0, 4) == 0
    rate = pass_rate([(4, 1), (4, 0), (1, 1)], 2)
    assert (rate.mean, rate.num_prompts) == (0.25, 2)
    assert (rate.low, rate.high) == (pytest.approx(0.0267, abs=1e-4), pytest.approx(0.8021, abs=1e-4))
    assert pass_rate([(1, 1)], 2) is None
