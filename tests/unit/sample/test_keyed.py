"""Answers keyed by prompt: the distribution that is drawn from, and what may not be said."""

import numpy as np
import pytest
import torch

from trainer.sample.keyed import BLOCK, KeyedSampler, draw_at, uniforms


@pytest.mark.parametrize(("size", "temperature"), [(5, 1.0), (BLOCK, 0.7), (3 * BLOCK + 17, 2.0)])
def test_a_token_is_drawn_where_the_sum_of_probabilities_passes_the_number(size, temperature):
    generator = torch.Generator().manual_seed(size)
    logits_BV = 3 * torch.randn(400, size, generator=generator)
    numbers_B = torch.rand(400, dtype=torch.float64, generator=generator)
    drawn = draw_at(logits_BV, temperature, numbers_B)
    upto = np.cumsum(torch.softmax(logits_BV.double() / temperature, -1).numpy(), axis=1)
    wanted = [
        int(np.searchsorted(row, number * row[-1], side="right"))
        for row, number in zip(upto, numbers_B.numpy(), strict=True)
    ]
    assert drawn.tolist() == wanted


def test_ends_of_the_numbers_draw_tokens_that_have_mass():
    logits_BV = torch.full((2, BLOCK + 3), float("-inf"))
    logits_BV[:, [4, BLOCK + 1]] = 0.0
    ends_B = torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64)
    assert draw_at(logits_BV, 1.0, ends_B).tolist() == [4, BLOCK + 1]


def test_numbers_are_those_of_the_key_and_the_seed_alone():
    first = uniforms(0, "chat:0:0:0", 64)
    assert np.array_equal(first, uniforms(0, "chat:0:0:0", 64)) and np.array_equal(
        first[:8], uniforms(0, "chat:0:0:0", 8)
    )
    others = [uniforms(1, "chat:0:0:0", 64), uniforms(0, "chat:0:1:0", 64), uniforms(0, "chat:0:0:1", 64)]
    assert all(abs(np.corrcoef(first, other)[0, 1]) < 0.4 for other in others)
    assert first.min() >= 0 and first.max() < 1


def test_tokens_that_a_teacher_does_not_know_are_never_drawn():
    sampler = KeyedSampler(None, None, 0, frozenset(), 8, 1.0, 1, 0, num_ids=6, never=(2, 4, 9))
    opened = sampler._open(torch.arange(8.0).expand(1, -1).clone())
    assert torch.isneginf(opened[0]).nonzero().flatten().tolist() == [2, 4] and opened.shape == (1, 6)
