"""Packs, and virtual tokens before them, against the model's context."""

import pytest

from trainer.config.check_context import context_problems
from trainer.config.tune import TuneConfig, TuneMethod

PROMPT = TuneConfig(method=TuneMethod.prompt, virtual_tokens=30)


@pytest.mark.parametrize(
    ("longest", "seq_len", "tune"),
    [(None, 4096, PROMPT), (128, 98, PROMPT), (128, 128, TuneConfig(virtual_tokens=30))],
)
def test_what_the_context_has_room_for_is_taken(longest, seq_len, tune):
    assert not list(context_problems(longest, seq_len, tune))


@pytest.mark.parametrize(
    ("seq_len", "sentence"),
    [
        (
            129,
            "`data.seq_len` must be at most the model's context of 128, but is 129 instead. Set data.seq_len=128.",
        ),
        (
            99,
            "`tune.virtual_tokens` must leave room for packs of 99 in the model's context of 128, but is 30 instead. "
            "Set data.seq_len=98.",
        ),
    ],
)
def test_what_it_has_no_room_for_is_one_sentence(seq_len, sentence):
    assert [problem.sentence for problem in context_problems(128, seq_len, PROMPT)] == [sentence]
