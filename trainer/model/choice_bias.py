"""Biases that steer which experts tokens are sent to, moved between steps in place of a loss of the routers.

After each step the bias of an expert that got fewer tokens than the mean of its layer rises by a fixed rate, and that
of one that got more falls. Source: Wang et al. 2024, arXiv:2408.15664; DeepSeek-V3, arXiv:2412.19437, section 2.1.2.

Shapes: E experts of all layers, layer after layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainer.errors import ModelError
from trainer.model.expert_load import ExpertLoad
from trainer.model.experts import choice_biases

HELD = "choice_bias.exact"
"""Name in a checkpoint of the biases' exact values, which are no part of the model."""


class ChoiceBias(nn.Module):
    """The biases of a model's routers, and their values in float32 whatever the model holds them in.

    A model that holds them in bf16 would lose a small step; it reads what the exact values round to.
    """

    exact: Tensor

    def __init__(self, owners: Sequence[tuple[nn.Module, str]], places: Sequence[slice], rate: float) -> None:
        """Take the module and the name of each buffer, and where among the experts of all layers its own are."""
        super().__init__()
        self._owners, self._places, self.rate = list(owners), list(places), rate
        self.register_buffer("exact", torch.cat([bias.reshape(-1).float() for bias in self.biases]))

    @property
    def places(self) -> list[slice]:
        """Return where among the experts of all layers those with a bias are, a slice a layer."""
        return self._places

    @property
    def biases(self) -> list[Tensor]:
        """Return what the model reads, a tensor a layer."""
        return [module.get_buffer(name) for module, name in self._owners]

    def adjust(self, tokens_E: Sequence[float]) -> None:
        """Move every bias by the rate, or not at all where an expert got just the mean.

        Args:
            tokens_E: The tokens of each expert over all ranks and micro-batches of a step.
        """
        counts = [torch.tensor(tokens_E[place], dtype=torch.float64) for place in self._places]
        # Whole numbers below 2^53: the sign is exact, and the same on every rank.
        signs = torch.cat([torch.sign(count.sum() - len(count) * count) for count in counts])
        self.exact += self.rate * signs.to(device=self.exact.device, dtype=self.exact.dtype)
        start = 0
        for bias, count in zip(self.biases, counts, strict=True):
            bias.copy_(self.exact[start : start + len(count)].view_as(bias))
            start += len(count)


def choice_bias_of(model: nn.Module, load: ExpertLoad, rate: float) -> ChoiceBias:
    """Return what moves the biases of a model's routers.

    Raises:
        ModelError: It has none, or one that a checkpoint would leave out.
    """
    found = choice_biases(model)
    buffers = dict(model.named_buffers())
    starts = [sum(load.sizes[:layer]) for layer in range(len(load.sizes))]
    owners, places = list[tuple[nn.Module, str]](), list[slice]()
    for expert_name, size, start in zip(load.names, load.sizes, starts, strict=True):
        block = expert_name.rpartition(".")[0]
        mine = [name for name in found if name.startswith(f"{block}.")]
        if len(mine) == 1 and mine[0] in buffers and buffers[mine[0]].numel() == size:
            module, _, key = mine[0].rpartition(".")
            owners.append((model.get_submodule(module), key))
            places.append(slice(start, start + size))
        elif mine:
            _refuse(model, rate, f"{mine[0]} is a frozen parameter, which a checkpoint leaves out")
    if not owners:
        _refuse(model, rate, "no tensor without a gradient steers the choice of its experts")
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    if frozen:
        _refuse(model, rate, f"{frozen[0]} does not train, and a checkpoint of a part leaves the bias out")
    return ChoiceBias(owners, places, rate)


def _refuse(model: nn.Module, rate: float, why: str) -> None:
    raise ModelError(
        f"`train.router_bias_rate` must be 0 for {type(model).__name__}, but is {rate:g} instead: {why}. Set it to 0."
    )
