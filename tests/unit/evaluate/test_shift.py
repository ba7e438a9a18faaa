"""How far text is from what a base knows: numbers worked out by hand, and a tiny model against plain torch."""

import math

import numpy as np
import pytest
import torch

from trainer.config.replay import Shift
from trainer.data.types import Pack, Unit
from trainer.evaluate.shift import (
    STRONG_RATIO,
    TextLoss,
    count_letters,
    judge_shift,
    shared_documents,
    text_loss,
)
from trainer.evaluate.text_bytes import text_bytes
from trainer.evaluate.windows import WIDTH, TextWindow, cut_window, sample_windows, score_windows
from trainer.model.tiny import build_tokenizer
from trainer.model.tokenizer import Tokenizer


def loss(bits, low=None, high=None):
    """Bits per letter; per byte they are others."""
    return TextLoss("x", 1.0, bits / 3, None, None, 9, 9, 9, (bits,), bits, low, high)


def test_nats_are_per_token_bits_per_byte_and_a_document_is_counted_once():
    """Windows of documents 5, 5, 8: 6 ln 2 nats over 3 tokens. By letters 5 costs 4 / 4, 8 2 / 8 bits."""
    nll = math.log(2) * np.array([1.0, 3.0, 2.0])
    found = text_loss(
        "x", nll, np.array([1, 1, 1]), np.array([3, 5, 4]), np.array([2, 2, 8]), np.array([5, 5, 8])
    )
    assert found.nats == pytest.approx(2 * math.log(2)) and found.bits_per_byte == pytest.approx(0.5)
    assert found.bits_by_document == pytest.approx((1.0, 0.25)) and found.bits_per_letter == pytest.approx(
        0.5
    )
    assert (found.num_documents, found.num_tokens, found.num_bytes) == (2, 3, 12) and found.low is None
    assert (found.known(2.001), found.known(1.999), found.known(0.499)) == (2, 1, 0)


def test_a_shift_is_strong_by_bits_per_byte_and_close_where_the_interval_holds_the_line():
    """The two shifts of docs/forgetting.md, and one whose interval reaches over the line."""
    strong, weak = (
        judge_shift(one, loss(1.0, 0.95, 1.05)) for one in (loss(1.79, 1.7, 1.9), loss(0.956, 0.9, 1.0))
    )
    assert (strong.kind, strong.ratio, strong.is_close) == (Shift.strong, 1.79, False)
    assert (weak.kind, weak.is_close) == (Shift.weak, False)
    assert pytest.approx(math.sqrt(1.79 * 0.956), abs=0.01) == STRONG_RATIO
    near = judge_shift(loss(2.5, 2.4, 2.7), loss(2.0, 2.0, 2.0))
    assert (near.kind, near.ratio, near.is_close) == (Shift.weak, 1.25, True)
    assert (near.low, near.high) == (pytest.approx(1.2), pytest.approx(1.35)), "general text without a doubt"
    sure = loss(2.0, 2 / math.exp(0.03), 2 * math.exp(0.04))
    both = judge_shift(sure, sure)
    assert (both.low, both.high) == (pytest.approx(math.exp(-0.05)), pytest.approx(math.exp(0.05))), (
        "3, 4 and 5"
    )
    assert judge_shift(loss(2.5, 2.4, 2.7), loss(2.0)).is_close, "nobody knows what general text costs"
    assert judge_shift(loss(9.0), loss(1.0)).is_close, "without an interval nobody can tell"


def test_letters_of_two_or_three_bytes_are_one_and_wide_ones_three():
    assert [count_letters(text) for text in ("ab", "\u0434\u0430", "\u6c34", "")] == [2, 2, 3, 0]


def test_documents_in_two_sources_are_counted():
    hashes = {"a": np.array([1, 4, 9]), "b": np.array([4, 9, 10]), "c": np.array([2])}
    assert shared_documents(hashes) == [("a", "b", 2)]


def test_a_window_holds_something_learnt_wherever_it_stands():
    rng = np.random.default_rng(0)
    ids, learnt = np.arange(1000), np.zeros(1000, bool)
    assert cut_window(0, ids, learnt, rng) is None
    learnt[0] = True  # which nothing predicts
    assert cut_window(0, ids, learnt, rng) is None
    learnt[990] = True
    window = cut_window(3, ids, learnt, rng)
    assert len(window.ids) == WIDTH and window.targets.tolist() == [990] and window.document == 3
    short = cut_window(0, ids[:5], np.ones(5, bool), rng)
    assert short.ids.tolist() == [0, 1, 2, 3, 4] and short.targets.tolist() == [1, 2, 3, 4]


def test_the_name_of_a_special_token_is_no_text_that_costs_the_base_anything():
    """Of an answer of two tokens and an end of turn the two are left, and of an end alone nothing."""
    rng, ids = np.random.default_rng(0), np.array([7, 5, 6, 1])
    window = cut_window(0, ids, np.array([False, True, True, True]), rng, special={0, 1})
    assert window.targets.tolist() == [5, 6] and window.ids.tolist() == ids.tolist()
    assert cut_window(0, ids, np.array([False, False, False, True]), rng, special={0, 1}) is None
    pairs = sample_windows(PairSplit(), 9, rng, special=range(13))
    assert [window.targets.tolist() for window in sorted(pairs, key=lambda one: one.document)] == [
        [13],
        [21, 22, 23],
    ]
    tokenizer = Tokenizer(build_tokenizer())
    (answer,) = tokenizer.encode_fragments(["42<|im_end|>"])
    assert len(answer) == 3 and text_bytes(tokenizer, np.array(answer)) == 2
    assert text_bytes(tokenizer, np.array([], dtype=np.int64)) == 0


class PairSplit:
    seq_len, unit, num_packs = 8, Unit.pair, 3

    def pack(self, index):
        return Pack(np.arange(8) + 10 * index, np.ones(8, bool), [4, 4])

    def documents_of(self, index):
        return np.array([index, index])


def test_windows_are_of_chosen_answers_and_no_more_than_asked_for():
    found = sample_windows(PairSplit(), 2, np.random.default_rng(1))
    assert len(found) == 2 and all(window.ids[0] % 10 == 0 for window in found)
    assert sorted(w.document for w in sample_windows(PairSplit(), 99, np.random.default_rng(1))) == [0, 1, 2]


def test_the_loss_of_a_window_is_that_of_its_row_alone():
    """Rows of a batch are filled up: a difference, and what fills them counts."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, max_position_embeddings=64, **shape)).eval()
    rng, windows, expected = np.random.default_rng(0), [], []
    for length in (3, 12, 7, 5, 9):
        ids, learnt = rng.integers(0, 32, length), rng.random(length) < 0.7
        windows.append(TextWindow(0, ids, learnt))
        with torch.no_grad():
            logits = model(torch.from_numpy(ids)[None]).logits[0].double()
        nll = torch.nn.functional.cross_entropy(logits[:-1], torch.from_numpy(ids[1:]), reduction="none")
        expected.append(float(nll[torch.from_numpy(learnt[1:])].sum()))
    done = []
    found = score_windows(model, windows, torch.device("cpu"), done.append)
    assert found == pytest.approx(expected, rel=1e-5) and sum(done) == 5
