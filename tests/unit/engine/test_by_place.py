"""What ZeRO-3 gathers whole gets its arguments by place: torch's hook on a backward pass sees no others."""

import pytest
import torch
from torch import nn

from trainer.engine.initialize import by_place


class Layer(nn.Module):
    """A layer whose arguments have names."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, hidden, mask=None, *, scale=1.0, **more):
        return hidden * self.weight * scale


def has_gradient_when_its_hook_runs(layer):
    seen = []
    layer.register_full_backward_hook(lambda module, given, got: seen.append(layer.weight.grad is not None))
    hidden = torch.ones(3, requires_grad=True)
    layer(hidden=hidden, scale=2.0, other=None).sum().backward()
    return seen


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_the_hook_of_a_layer_that_is_called_by_names_runs_once_its_gradients_are_there():
    plain, placed = Layer(), Layer()
    placed.register_forward_pre_hook(by_place, with_kwargs=True, prepend=True)
    assert has_gradient_when_its_hook_runs(placed) == [True]
    assert has_gradient_when_its_hook_runs(plain) == [False], "torch looks at names now: by_place can go"


def test_only_what_has_a_place_is_moved_and_only_up_to_the_first_that_is_not_given():
    layer = Layer()
    assert by_place(layer, (1,), {"mask": 2, "scale": 3, "other": 4}) == ((1, 2), {"scale": 3, "other": 4})
    assert by_place(layer, (), {"mask": 2}) == ((), {"mask": 2})
