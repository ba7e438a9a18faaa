"""Sequence parallelism (Ulysses): neighbouring ranks share a pack, and each computes on its slice of the tokens.

All but attention looks at one token at a time. There every rank gives its slice of the other ranks' heads away for the
other slices of its own heads, attends to the whole pack with those, and gives the outcome back likewise. Masks,
boundaries of documents and windows are those of the whole pack. The gradient of an exchange is the exchange back,
without a factor: gradients of the ranks add up to that of the pack.

Source: Jacobs et al. 2023, arXiv:2309.14509. Shapes: B packs, T tokens of a pack, H hidden.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor

from trainer.config.check_sequence import KEY, head_problems
from trainer.dist.mesh import Axis
from trainer.errors import ConfigError, ModelError
from trainer.model.around_attention import AttentionCall
from trainer.model.carry import why_in_rows


@dataclass(slots=True)
class TokenSlices:
    """How the ranks of a group share the tokens of one pass through a model: something that is done around attention.

    Its methods but `own` and `refusal` are collective.
    """

    axis: Axis
    group: Any
    """Of torch.distributed; its ranks in the order of the axis."""
    num_calls: int = 0

    def attend(self, call: AttentionCall) -> Any:
        """Call attention on whole packs with this rank's heads, and return this rank's tokens of all heads.

        Takes queries, keys and values [B, heads, T / ranks, size]; gives [B, T / ranks, heads, size]. Where the ranks
        do not divide the heads of keys, those are repeated, as few times as need be.
        """
        if call.options.get("s_aux") is not None or call.options.get("position_bias") is not None:
            raise ModelError(
                f"`{KEY}` must be 1 for a model with a number of its own for each head of attention (sinks, biases), "
                f"but is {self.axis.size} instead. Set {KEY}=1."
            )
        self.num_calls += 1
        # Those of the slice; the mask or the boundaries tell of documents.
        call.options.pop("position_ids", None)
        num_ranks, num_keys = self.axis.size, call.key.shape[1]
        repeats = num_ranks // math.gcd(num_ranks, num_keys)
        if repeats > 1:
            call.module = _Regrouped(call.module, call.query.shape[1] // (num_keys * repeats))
            call.key, call.value = (
                tensor.repeat_interleave(repeats, dim=1) for tensor in (call.key, call.value)
            )
        call.query, call.key, call.value = (
            self.exchanged(tensor, cut=1, join=2) for tensor in (call.query, call.key, call.value)
        )
        outcome, weights = call.answered()
        return self.exchanged(outcome, cut=1, join=2), weights

    def refusal(self, model_type: str, num_missed: int, num_layers: int) -> str:
        """Return the sentence about a model of which so many layers never came here."""
        return (
            f"`{KEY}` must be 1 for {model_type}, but is {self.axis.size} instead: the attention of {num_missed} of "
            f"its {num_layers} layers cannot see more than a rank's part of a pack. Set {KEY}=1."
        )

    def own(self, whole: Tensor, dim: int = 1) -> Tensor:
        """Return this rank's slice, a view."""
        size = whole.shape[dim] // self.axis.size
        return whole.narrow(dim, self.axis.rank * size, size)

    def joined(self, own: Tensor, dim: int = 1) -> Tensor:
        """Return what all ranks have, one slice after the other. Without a gradient."""
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(self.axis.size)]
        torch_dist.all_gather(parts, own.detach().contiguous(), group=self.group)
        return torch.cat(parts, dim=dim)

    def placed(self, own: Tensor, dim: int = 1) -> Tensor:
        """Return a tensor of the whole length that is zero beside this rank's slice."""
        shape = list(own.shape)
        shape[dim] *= self.axis.size
        whole = own.new_zeros(shape)
        self.own(whole, dim).copy_(own)
        return whole

    def summed(self, value: Tensor) -> Tensor:
        """Return the sum over the ranks. Without a gradient."""
        total = value.detach().clone(memory_format=torch.contiguous_format)
        torch_dist.all_reduce(total, group=self.group)
        return total

    def exchanged(self, tensor: Tensor, cut: int, join: int) -> Tensor:
        """Cut a tensor along a dimension, give every rank its part, join what comes along another. Differentiable."""
        found: Tensor = _Exchange.apply(tensor, self, cut, join)  # type: ignore[no-untyped-call]
        return found


class _Exchange(torch.autograd.Function):
    """An all-to-all, whose gradient is the one back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, slices: TokenSlices, cut: int, join: int) -> Tensor:
        ctx.slices, ctx.cut, ctx.join = slices, cut, join
        return _all_to_all(tensor, slices, cut, join)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return _all_to_all(grad_outputs[0], ctx.slices, ctx.join, ctx.cut), None, None, None


def _all_to_all(tensor: Tensor, slices: TokenSlices, cut: int, join: int) -> Tensor:
    sent = torch.stack(tensor.chunk(slices.axis.size, dim=cut))
    got = torch.empty_like(sent)
    torch_dist.all_to_all_single(got, sent, group=slices.group)
    return torch.cat(got.unbind(0), dim=join)


class _Regrouped:
    """A layer as attention sees it, whose heads of keys serve another number of heads of queries."""

    def __init__(self, layer: Any, num_groups: int) -> None:
        self._layer = layer
        self.num_key_value_groups = num_groups

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


def check_slices(size: int, hf_config: Any) -> None:
    """Refuse what the tokens of a pack cannot be shared for.

    Raises:
        ConfigError: Something is carried along a row, or the ranks do not divide the heads.
    """
    if size == 1:
        return
    why = why_in_rows(hf_config)
    if why is not None:
        raise ConfigError(f"`{KEY}` must be 1 for this model, but is {size} instead: {why}. Set {KEY}=1.")
    heads = getattr(hf_config.get_text_config(), "num_attention_heads", None)
    found = [heads] if isinstance(heads, int) else list(heads or ())
    for broken in head_problems(size, found):
        raise ConfigError(broken.sentence)
