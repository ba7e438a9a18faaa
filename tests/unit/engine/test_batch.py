"""Batch arithmetic: one knob, the rest derived, and one sentence when it does not divide."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.engine.batch import batch_shape
from trainer.errors import TopologyError


def test_eight_ranks_share_a_batch_of_64_packs():
    shape = batch_shape(131072, 2048, 2, 8)
    assert (shape.packs_per_step, shape.num_micro_steps) == (64, 4)


@given(st.integers(1, 64), st.integers(1, 8), st.integers(1, 16), st.sampled_from([8, 64, 2048]))
def test_every_pack_of_a_step_goes_to_one_micro_step_of_one_rank(num_micro, micro, ranks, seq_len):
    shape = batch_shape(num_micro * micro * ranks * seq_len, seq_len, micro, ranks)
    assert shape.num_micro_steps == num_micro
    assert shape.packs_per_step == num_micro * micro * ranks
    assert shape.packs_per_step * seq_len == num_micro * micro * ranks * seq_len


def test_a_batch_that_ranks_do_not_divide_is_refused_with_the_nearest_that_works():
    with pytest.raises(TopologyError) as caught:
        batch_shape(100_000, 2048, 2, 3)
    assert str(caught.value) == (
        "`train.global_batch_tokens` must be a multiple of ranks x micro batch x seq_len = 3 x 2 x 2048 = "
        "12288, but is 100000 instead. Set train.global_batch_tokens=98304."
    )


@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 16))
def test_the_batch_that_the_sentence_proposes_is_accepted(tokens, micro, ranks):
    try:
        batch_shape(tokens, 64, micro, ranks)
    except TopologyError as error:
        proposed = int(str(error).rsplit("=", 1)[1].rstrip("."))
        assert batch_shape(proposed, 64, micro, ranks).packs_per_step * 64 == proposed


def test_ranks_that_share_packs_take_one_place_in_a_step():
    shape = batch_shape(131072, 2048, 2, 8, sequence_parallel=4)
    assert (shape.packs_per_step, shape.num_micro_steps, shape.num_places) == (64, 16, 64)
    with pytest.raises(
        TopologyError, match=r"of ranks / train\.sequence_parallel x .* = 2 x 2 x 2048 = 8192"
    ):
        batch_shape(4096, 2048, 2, 8, sequence_parallel=4)
