"""Routers of mixtures whose choice is made in float32 while the model trains in bf16.

A router is a small layer, and what it rounds decides which experts a token goes to: of scores in bf16 the last of those
chosen and the first of those left out are often one number. Its weights stay as DeepSpeed holds them; its products take
them and the hidden states as float32 and are not rounded, so that scores and the choice made from them are float32 too.
What it gives to the rest of the model has the types that its class gives.

Shapes: N tokens, H hidden, E experts of a layer, ... leading sizes of either.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.model.experts import expert_tensors, size_of

SPARE = 2
"""Up to so many times the experts with weights a router may choose among: some give back what they get."""


class ExactForward:
    """The forward of a router, of which the products are in float32, in place of its class's."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        """Take the forward that is there."""
        self._forward = forward
        self._dtypes: list[torch.dtype] | None = None
        """Of what it gives by itself, in its order; looked at once."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the router gives, its numbers in the types that it gives by itself."""
        if self._dtypes is None:
            self._dtypes = self._own_dtypes(args, kwargs)
        with _products_by(_exact):
            output = self._forward(*args, **kwargs)
        if isinstance(output, Tensor):
            return output.to(self._dtypes[0])
        parts = (
            part.to(dtype) if isinstance(part, Tensor) else part
            for part, dtype in zip(output, self._dtypes, strict=True)
        )
        return type(output)(parts)

    def _own_dtypes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.dtype]:
        """Run the forward once as it is, on copies and with random numbers of its own.

        One that widens what it is given expects that its weights are wide, as they are not here (Inkling 2).
        """
        copies = [
            value.clone() if isinstance(value, Tensor) else value for value in (*args, *kwargs.values())
        ]
        devices = {value.device.index for value in copies if isinstance(value, Tensor) and value.is_cuda}
        forked = torch.random.fork_rng(devices=sorted(devices))
        with torch.no_grad(), forked, _products_by(_as_given):
            output = self._forward(
                *copies[: len(args)], **dict(zip(kwargs, copies[len(args) :], strict=True))
            )
        parts = [output] if isinstance(output, Tensor) else output
        return [part.dtype if isinstance(part, Tensor) else torch.float32 for part in parts]


def routers_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the routers of a causal model by name, a module beside the experts of each layer that choose by it.

    Known by its sizes: a matrix with a row for each expert, and none that leads back to hidden states as those of a
    shared MLP do. A bare linear layer is none: what follows it is in the code around it.
    """
    config: Any = getattr(model, "config", None)
    hidden = getattr(None if config is None else config.get_text_config(), "hidden_size", None)
    blocks: dict[str, tuple[str, int]] = {}
    for name, tensor in expert_tensors(model).items():
        block, _, holder = name.rpartition(".")[0].rpartition(".")
        blocks.setdefault(block, (holder, size_of(tensor)[0]))
    found = {}
    for block, (holder, num_experts) in blocks.items():
        for key, beside in model.get_submodule(block).named_children():
            rows = {size_of(p)[0] for p in beside.parameters() if len(size_of(p)) == 2}
            scores = any(num_experts <= count <= SPARE * num_experts for count in rows)
            is_bare = type(beside).forward is nn.Linear.forward
            if scores and hidden not in rows and not is_bare and key != holder:
                found[f"{block}.{key}" if block else key] = beside
    return found


def make_exact(router: nn.Module) -> None:
    """Let a router compute in float32 from now on, in place."""
    router.forward = ExactForward(router.forward)


def make_routers_exact(model: nn.Module) -> None:
    """Let the routers of a causal model compute in float32 from now on, in place; none of which a part is in 4 bits.

    What such a part computes is bitsandbytes' own, and its weights are rounded much more than a product is.
    """
    for router in routers_of(model).values():
        if not any(getattr(p, "quant_state", None) is not None for p in router.parameters()):
            make_exact(router)


def within_exact(model: nn.Module) -> set[int]:
    """Return the ids of the modules that routers in float32 are made of, where nothing may multiply otherwise."""
    return {id(part) for router in model.modules() if is_exact(router) for part in router.modules()}


def is_exact(router: nn.Module) -> bool:
    """Tell whether a router was made so."""
    return isinstance(vars(router).get("forward"), ExactForward)


def exact_routers(model: nn.Module) -> list[str]:
    """Return the names of the routers of a causal model that compute in float32 whatever they are held in."""
    return [name for name, router in routers_of(model).items() if is_exact(router)]


@contextlib.contextmanager
def _products_by(product: Callable[..., Tensor]) -> Iterator[None]:
    """Let linear layers multiply by a function that is told the one in place. One thread runs a model at a time."""
    inner = functional.linear
    functional.linear = functools.partial(product, inner)
    try:
        yield
    finally:
        functional.linear = inner


def _exact(inner: Callable[..., Tensor], given: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply in float32, and give it."""
    if given.dtype == weight.dtype == torch.float32:
        return inner(given, weight, bias)
    found: Tensor = _product(given, weight)
    return found if bias is None else found + bias.float()


def _as_given(
    inner: Callable[..., Tensor], given: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Multiply in the type of what is given."""
    return inner(given, weight.to(given.dtype), None if bias is None else bias.to(given.dtype))


class _Product(torch.autograd.Function):
    """A product in float32 that keeps what it was made from as it was: no copy in float32 waits for the gradient.

    A parameter that ZeRO-3 lets go between the passes is read again in the backward pass, when it is there.
    """

    @staticmethod
    def forward(ctx: Any, given: Tensor, weight_EH: Tensor) -> Tensor:
        ctx.save_for_backward(given, weight_EH)
        return given.float() @ weight_EH.float().t()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (slope,), (given, weight_EH) = gradients, ctx.saved_tensors
        slope_given = slope_weight = None
        if ctx.needs_input_grad[0]:
            slope_given = (slope @ weight_EH.float()).to(given.dtype)
        if ctx.needs_input_grad[1]:
            slope_NE, given_NH = slope.reshape(-1, slope.shape[-1]), given.reshape(-1, given.shape[-1])
            slope_weight = (slope_NE.t() @ given_NH.float()).to(weight_EH.dtype)
        return slope_given, slope_weight


_product: Any = _Product.apply
