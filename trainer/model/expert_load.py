"""How tokens spread over experts while a model trains, heard from the modules that choose and that compute.

Shapes: N tokens, K experts a token goes to, E experts of a layer.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from trainer.model.experts import expert_tensors, num_chosen, size_of

_LOG = logging.getLogger(__name__)

WRAPPED = re.compile(r"(\.base_layer)+$")
"""What an adapter on experts puts behind their name."""


class ExpertLoad:
    """Counts which experts tokens are sent to while a model trains, without waiting for the device.

    Heard is what a module of experts is told: the chosen ones as whole numbers [N, K], or how many tokens each gets.
    Where it is told neither, what the modules beside it last gave: such numbers, or scores [N, E] that are 0 but for
    the chosen ones. A choice that is told otherwise is not counted, and that is said. Counted is inside `hearing`
    alone, so a layer that is recomputed in the backward pass counts once.
    """

    def __init__(self, model: nn.Module) -> None:
        """Listen to every module that holds experts and to those beside it, in place."""
        found = {
            name.rpartition(".")[0]: size_of(tensor)[0] for name, tensor in expert_tensors(model).items()
        }
        config = getattr(model, "config", None)
        chosen = (None if config is None else num_chosen(config)) or 0
        # Fewer than a token goes to are those that all tokens go to, held as the others are (Inkling).
        owners = {name: size for name, size in found.items() if size >= chosen}
        self._sizes = list(owners.values())
        self._heard = _Heard()
        self._listeners = [_Listener(size, self._heard) for size in self._sizes]
        self._names = list(owners)
        self._has_told = False
        self._before_step = [0.0] * sum(self._sizes)
        for name, listener in zip(owners, self._listeners, strict=True):
            model.get_submodule(name).register_forward_pre_hook(listener.before_experts, with_kwargs=True)
            block, _, within = WRAPPED.sub("", name).rpartition(".")
            for key, beside in model.get_submodule(block).named_children():
                if key != within:
                    beside.register_forward_hook(listener.after_beside)

    @property
    def sizes(self) -> list[int]:
        """Return the experts of every layer that has some."""
        return self._sizes

    @property
    def names(self) -> list[str]:
        """Return the name of the module of experts of every such layer."""
        return self._names

    @contextlib.contextmanager
    def hearing(self, is_token_N: Tensor | None) -> Iterator[None]:
        """Count what experts are told while this lasts.

        Args:
            is_token_N: What is no padding. Padding counts where this is None, and where experts are told no more than
                how many tokens each gets.
        """
        self._heard.is_on, self._heard.is_token_N = True, is_token_N
        try:
            yield
        finally:
            self._heard.is_on, self._heard.is_token_N = False, None

    def take_step(self) -> list[float]:
        """Return the tokens of every expert since the last call of this or of `take`. Waits for the device."""
        now, before = self._counts(), self._before_step
        self._before_step = now
        return [count - earlier for count, earlier in zip(now, before, strict=True)]

    def take(self) -> list[float]:
        """Return the tokens of every expert since the last call, layer after layer. Waits for the device."""
        found = self._counts()
        self._before_step = [0.0] * len(found)
        unheard = []
        for name, listener in zip(self._names, self._listeners, strict=True):
            if listener.counts is not None:
                listener.counts.zero_()
            elif listener.is_deaf:
                unheard.append(name)
        if unheard and not self._has_told:
            self._has_told = True
            _LOG.warning(
                "How tokens spread over the experts of %d of %d layers cannot be seen (%s): neither they nor their "
                "router say which are chosen.",
                len(unheard),
                len(self._sizes),
                unheard[0],
            )
        return found

    def _counts(self) -> list[float]:
        """Return the tokens of every expert since they were last taken."""
        heard = [listener.counts for listener in self._listeners if listener.counts is not None]
        flat = iter(torch.cat([counts.to(heard[0].device) for counts in heard]).tolist() if heard else ())
        return [
            0.0 if listener.counts is None else float(next(flat))
            for listener in self._listeners
            for _ in range(listener.num_experts)
        ]


def spread(counts: list[float], sizes: list[int]) -> dict[str, float]:
    """Return the share of the busiest and of the idlest expert, means over layers, and how many got no token.

    Even is one over the number of experts. Nothing where no layer was told of a choice.
    """
    layers, start = [], 0
    for size in sizes:
        layers.append(counts[start : start + size])
        start += size
    heard = [(layer, sum(layer)) for layer in layers if sum(layer)]
    if not heard:
        return {}
    return {
        "experts_busiest_share": sum(max(layer) / total for layer, total in heard) / len(heard),
        "experts_idlest_share": sum(min(layer) / total for layer, total in heard) / len(heard),
        "experts_without_tokens": float(sum(layer.count(0.0) for layer, _ in heard)),
    }


class _Heard:
    """What all listeners go by."""

    is_on = False
    is_token_N: Tensor | None = None


class _Listener:
    """Hears the choice of one layer."""

    def __init__(self, num_experts: int, heard: _Heard) -> None:
        self.num_experts = num_experts
        self._heard = heard
        self.counts: Tensor | None = None
        self.is_deaf = False
        """Its experts were asked without a choice that is understood."""
        self._beside: dict[nn.Module, list[Tensor]] = {}
        """What modules beside the experts gave that may tell of a choice; looked at where the experts are told none."""
        self._is_scores: bool | None = None
        """Whether the first scores were those of chosen experts; looked at once, which waits for the device."""

    def before_experts(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Count what the experts are told, or what was said beside them."""
        if not self._heard.is_on:
            return
        given = [*args, *kwargs.values()]
        rows = next((value.shape[0] for value in given if isinstance(value, Tensor) and value.ndim == 2), 0)
        found = next((c for value in given if (c := self._chosen(value, rows)) is not None), None)
        beside, self._beside = list(self._beside.values()), {}
        if found is None:
            found = next((c for parts in reversed(beside) if (c := self._told(parts)) is not None), None)
        if found is None:
            self.is_deaf = True
        elif self.counts is None:
            self.counts = found
        else:
            self.counts += found

    def after_beside(self, module: nn.Module, args: Any, output: Any) -> None:
        """Keep what a module beside the experts gave, if it may be a choice."""
        if not self._heard.is_on:
            return
        parts = [
            part.detach()
            for part in _tensors(output)
            if part.ndim == 2 and (part.shape[1] == self.num_experts or not part.is_floating_point())
        ]
        if parts:
            self._beside.pop(module, None)  # the newest is the last
            self._beside[module] = parts

    def _told(self, parts: list[Tensor]) -> Tensor | None:
        """Return the tokens of every expert [E], told by what one module beside the experts gave."""
        for told in (lambda part: self._chosen(part, 0), self._scored):
            found = next((c for part in parts if (c := told(part)) is not None), None)
            if found is not None:
                return found
        return None

    def _chosen(self, value: Any, rows: int) -> Tensor | None:
        """Return the tokens of every expert [E], told by the chosen ones [N, K] or as such; None for anything else."""
        if isinstance(value, list | tuple) and len(value) == self.num_experts and rows:
            if all(type(count) is int for count in value) and sum(value) == rows:
                return torch.tensor(value)
            return None
        if not isinstance(value, Tensor) or value.is_floating_point() or value.dtype == torch.bool:
            return None
        if value.ndim != 2 or value.shape[1] > self.num_experts:  # places of tokens, for one
            return None
        # Beyond the last are those without weights, which give back what they get (LongCat): counted apart.
        index = value.detach().reshape(-1).long().clamp(max=self.num_experts)
        is_counted = torch.ones_like(value, dtype=torch.int64)
        is_token_N = self._mask(value)
        if is_token_N is not None:
            is_counted *= is_token_N[:, None]
        counts = torch.zeros(self.num_experts + 1, dtype=torch.int64, device=index.device)
        return counts.index_add_(0, index, is_counted.reshape(-1))[:-1]

    def _scored(self, value: Tensor) -> Tensor | None:
        """Return the tokens of every expert [E], told by scores [N, E] of which most are exactly 0, as many of each."""
        if value.ndim != 2 or value.shape[1] != self.num_experts or not value.is_floating_point():
            return None
        is_chosen_NE = value.detach() != 0
        if self._is_scores is None:
            chosen_N = is_chosen_NE.sum(1)
            self._is_scores = (
                bool((chosen_N == chosen_N[:1]).all()) and 0 < int(chosen_N[0]) < self.num_experts
            )
        if not self._is_scores:
            return None
        is_token_N = self._mask(value)
        return (is_chosen_NE if is_token_N is None else is_chosen_NE & is_token_N[:, None]).sum(0)

    def _mask(self, value: Tensor) -> Tensor | None:
        """Return which rows of a choice are no padding; None where all count, or they are not the tokens."""
        is_token_N = self._heard.is_token_N
        return None if is_token_N is None or len(is_token_N) != len(value) else is_token_N


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, list | tuple):
        yield from (part for part in output if isinstance(part, Tensor))
