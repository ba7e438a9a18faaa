"""Memory and time of losses of answers: of their logits, against what the code holds, and worked out by hand."""

from dataclasses import replace

import pytest
import torch

from tests.unit.forecast.test_bent import Held
from tests.unit.forecast.test_memory import BIG, LLAMA
from trainer.command.counted import run_shape
from trainer.command.fitting import fitted
from trainer.config.store import compose_config
from trainer.forecast.activations import log_prob_bytes
from trainer.forecast.loss_head import head_bytes
from trainer.forecast.memory import Weights, full_weights
from trainer.forecast.step_time import find_device, step_time
from trainer.model.head.bend import Bend
from trainer.model.head.log_probs import ChunkedLogProbs

ROWS, HIDDEN, VOCAB = 8, 4, 65536
BF16, FP32 = torch.bfloat16, torch.float32
RUN = replace(BIG, seq_len=8192, loss_chunk_tokens=4096, stage=2, asks_log_probs=True)
STATES = 8192 * 4096
"""Elements of hidden states of a micro-batch of Llama-3-8B."""
LOGITS = 4096 * 128_256
"""Elements of a chunk."""
MATRIX = 128_256 * 4096
FROZEN = Weights(1_000, frozen_bytes=2.0 * LLAMA.num_params, num_frozen=LLAMA.num_params)


@pytest.mark.parametrize("is_full", [False, True], ids=["frozen", "full"])
@pytest.mark.parametrize(("dtype", "cap"), [(BF16, None), (FP32, None), (FP32, 30.0), (BF16, 30.0)])
def test_a_chunk_takes_what_log_probabilities_hold_at_once(dtype, cap, is_full):
    """Four chunks: what one of them made is gone before the next; twice as much was held where it was not."""
    hidden = torch.randn(4 * ROWS, HIDDEN, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCAB, HIDDEN, dtype=dtype, requires_grad=is_full)
    targets = torch.randint(0, VOCAB, (4 * ROWS,))
    a_logit = log_prob_bytes(replace(LLAMA, caps_logits=cap is not None), dtype.itemsize)
    with Held(weight) as forward:
        found = ChunkedLogProbs.apply(hidden, weight, None, targets, ROWS, Bend(cap=cap))
    expected = ROWS * VOCAB * a_logit
    assert forward.most <= expected + 3000
    # In float32 a cap takes its two more only where there is a gradient to turn back.
    assert (is_full and dtype == FP32 and cap) or forward.most == pytest.approx(expected, abs=3000)
    with Held(weight) as backward:
        found.sum().backward()
    matrix, e = VOCAB * HIDDEN, dtype.itemsize
    chunk = max(ROWS * VOCAB * a_logit, (matrix + ROWS * VOCAB) * e)
    assert backward.most == pytest.approx(4 * matrix + chunk if is_full else 0, abs=6000)


def test_the_head_of_answers_is_worked_out_with_frozen_matrix_and_with_one_that_trains():
    """In bf16: logits, their copy in float32 and its log-softmax, 10 bytes, where those of tokens take 2 in place."""
    head = head_bytes(LLAMA, RUN, FROZEN)
    assert head.in_forward == 3 * STATES * 2 + LOGITS * (2 + 4 + 4)
    assert head.in_backward == STATES * (2 + 4 + 2) and head.after == STATES * 2
    tokens = head_bytes(LLAMA, replace(RUN, asks_log_probs=False), FROZEN)
    assert head.in_forward - tokens.in_forward == STATES * 2 + LOGITS * 8
    full = head_bytes(LLAMA, RUN, full_weights(LLAMA))
    assert full.in_forward == 2 * STATES * 2 + LOGITS * 10
    # The sum of the matrix's gradient in float32, and beside it a chunk.
    assert full.in_backward == 2 * STATES * 2 + MATRIX * 4 + LOGITS * 10
    few = head_bytes(LLAMA, replace(RUN, loss_chunk_tokens=16), full_weights(LLAMA))
    # Of a short chunk its gradient of the matrix is the most.
    assert few.in_backward == 2 * STATES * 2 + MATRIX * (4 + 2) + 16 * 128_256 * 2


def test_a_score_has_no_logits_and_a_matrix_of_one_row():
    head = head_bytes(LLAMA.scoring(), replace(RUN, asks_log_probs=False), full_weights(LLAMA.scoring()))
    assert (
        head.in_forward == 2 * STATES * 2 + 4096 * 2 + 4096 * 4
    )  # a number a row of a chunk; a row in float32
    assert full_weights(LLAMA.scoring()).num_trainable == LLAMA.num_params - MATRIX + 4096


@pytest.mark.parametrize(
    ("words", "asks"),
    [
        ([], False),
        (["objective=dpo", "data=preference", "data.sources.pairs.path=/a.jsonl"], True),
        (
            ["objective=reward", "model.head=score", "data=preference", "data.sources.pairs.path=/a.jsonl"],
            False,
        ),
    ],
    ids=["tokens", "dpo", "reward"],
)
def test_which_runs_ask_for_log_probabilities(words, asks):
    own = ["model=tiny", "train.max_steps=1", "train.micro_batch_size=1", *words]
    config = fitted(compose_config(own), 1, can_load=False, here_gib=80.0).config
    assert run_shape(config, 1).asks_log_probs == asks


def test_logits_that_are_made_twice_take_a_product_more_and_their_bytes():
    """8,192 tokens: of a trained matrix 2 x 4,096 x 128,256 operations each, at 0.6 of 989.4e12 a second on an H200."""
    device = find_device("H200")
    weights = full_weights(LLAMA)
    plain, asked = (
        step_time(LLAMA, replace(RUN, asks_log_probs=asks), weights, device, 8192) for asks in (False, True)
    )
    assert asked.matmuls - plain.matmuls == pytest.approx(2 * MATRIX * 8192 / (0.6 * 989.4e12))
    assert asked.memory - plain.memory == pytest.approx((37 - 5) * 2 * 128_256 * 8192 / (0.8 * 4.8e12))
    plain, asked = (
        step_time(LLAMA, replace(RUN, asks_log_probs=asks), FROZEN, device, 8192) for asks in (False, True)
    )
    assert asked.matmuls == plain.matmuls
    assert asked.memory - plain.memory == pytest.approx((22 - 5) * 2 * 128_256 * 8192 / (0.8 * 4.8e12))
