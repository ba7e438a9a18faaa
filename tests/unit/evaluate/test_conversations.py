"""The fixed conversations that KL is measured on, and what is said of those that are left out."""

import logging

import pytest

from trainer.config.data import DataConfig
from trainer.evaluate.conversations import ChatPrompts
from trainer.evaluate.forgetting import Texts, prompts_for_kl
from trainer.model.tiny import build_tokenizer
from trainer.model.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(build_tokenizer())


def test_conversations_that_do_not_fit_are_counted_and_said(tokenizer, caplog):
    """They were left out of the KL and nobody was told."""
    whole = ChatPrompts(tokenizer, 4096)
    assert whole.left_out is None
    lengths = sorted(whole.pack(index).lengths[0] for index in range(whole.num_packs))
    limit = lengths[2]
    fit = sum(length <= limit for length in lengths)
    short = ChatPrompts(tokenizer, limit)
    assert short.num_packs == fit < whole.num_packs
    said = f"{fit} of {whole.num_packs}: {whole.num_packs - fit} do not fit data.seq_len={limit}"
    assert short.left_out == said
    with caplog.at_level(logging.WARNING):
        prompts_for_kl(DataConfig(seq_len=limit), 4, Texts({}, tokenizer), 0)
        prompts_for_kl(DataConfig(seq_len=4096), 4, Texts({}, tokenizer), 0)
    assert caplog.messages == [f"KL to the base on fixed_conversations is of {said}."]


def test_conversations_that_the_template_does_not_render_are_counted(tokenizer):
    class Refuses:
        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def render_chat(self, messages, *rest):
            from trainer.errors import DataError

            raise DataError("no")

    prompts = ChatPrompts(Refuses(), 4096)
    num_all = ChatPrompts(tokenizer, 4096).num_packs
    assert (
        prompts.num_packs == 0
        and prompts.left_out == f"0 of {num_all}: the chat template renders {num_all} not"
    )
