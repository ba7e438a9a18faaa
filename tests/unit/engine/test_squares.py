"""Norms of many gradients: a CPU that adds them up in few float32 lanes is off by per cents."""

import math

import pytest
import torch

from trainer.engine.squares import ROW, sum_of_squares


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 5e-7), (torch.bfloat16, 2e-6)])
@pytest.mark.parametrize("size", [1, ROW - 1, ROW, 3 * ROW + 5, 2**24 + 1])
def test_the_sum_is_that_of_float64(dtype, most, size):
    values = (torch.randn(size, generator=torch.Generator().manual_seed(size)) * 1e-3).to(dtype)
    true = sum(float(part.double().square().sum()) for part in values.split(2**20))
    found = sum_of_squares(values)
    assert found.dtype is torch.float64 and found.ndim == 0
    assert float(found) == pytest.approx(true, rel=most, abs=0)


def test_none_and_what_is_not_finite():
    assert float(sum_of_squares(torch.zeros(0))) == 0.0
    for place in (0, ROW + 1):
        values = torch.ones(ROW + 2)
        values[place] = math.inf
        assert float(sum_of_squares(values)) == math.inf
        values[place] = math.nan
        assert math.isnan(float(sum_of_squares(values)))
