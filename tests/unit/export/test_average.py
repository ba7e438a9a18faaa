"""The mean of several models."""

import pytest
import torch

from trainer.errors import CheckpointError
from trainer.export.average import averaged


def stream(**tensors):
    return iter(tensors.items())


def test_each_tensor_is_the_mean_in_the_dtype_of_the_first_and_counts_are_the_firsts():
    streams = [
        stream(weight=torch.tensor([[first, 1.0]]), count=torch.tensor(number))
        for first, number in ((1.0, 7), (2.0, 8), (6.0, 9))
    ]
    found = dict(averaged(streams))
    assert found["weight"].tolist() == [[3.0, 1.0]] and found["weight"].dtype == torch.float32
    assert found["count"].item() == 7


def test_small_steps_are_not_lost_beside_large_weights():
    """A sum in float32 of numbers about 2^24 has steps of 4: the mean of 0, 2 and 4 beside it would not be 2."""
    values = [torch.tensor([2.0**24 + more]) for more in (0, 2, 4)]
    (found,) = [tensor for _, tensor in averaged([stream(w=value) for value in values])]
    assert found.item() == 2.0**24 + 2


def test_one_tensor_of_each_is_read_at_a_time():
    read = []

    def slow(number):
        for name in "abc":
            read.append((name, number))
            yield name, torch.zeros(1)

    first = next(averaged([slow(0), slow(1)]))
    assert first[0] == "a" and read == [("a", 0), ("a", 1)]


@pytest.mark.parametrize("other", [{"v": torch.zeros(2)}, {"w": torch.zeros(3)}])
def test_other_models_are_refused(other):
    with pytest.raises(CheckpointError, match="must hold the same tensors for their mean"):
        list(averaged([stream(w=torch.zeros(2)), stream(**other)]))
