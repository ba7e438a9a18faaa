"""Mixtures on ranks whose tokens choose other experts: every rank exchanges the same tensors in the same order.

DeepSpeed exchanges a gradient when it is there. One that is there on some ranks only, or earlier than another on some,
makes ranks wait for each other, or adds up what does not belong together. ZeRO-3 also notes the order in which modules
run, and gathers weights in it: an activation that is called for each expert that tokens chose makes it another one.

So gradients of experts come when the backward pass leaves what holds them, in one order, as zeros where no token of
this rank went; what experts answer stays in the graph of what they were given, though it be a constant; and what has no
weights in them is not looked at.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer.model.choosing import holders_of_experts, own_parameters, owners_of_lists


def settle_gradients(model: nn.Module, are_lists_whole: bool) -> None:
    """Let gradients of experts come in the same order on every rank, in place. After DeepSpeed has put its hooks on.

    Args:
        model: Of which `lm` is the causal model, if it has one.
        are_lists_whole: DeepSpeed gathers modules that choose among a list whole, and sees to what trains in them.
    """
    lm = getattr(model, "lm", model)
    for module in holders_of_experts(lm):
        _Settled(module, own_parameters(module))
    for module in owners_of_lists(lm):
        _Settled(module, [] if are_lists_whole else own_parameters(module))


@contextlib.contextmanager
def weightless_hidden(model: nn.Module) -> Iterator[None]:
    """Hide what has no weights in what holds tensors of experts, while DeepSpeed puts its hooks on modules."""
    hidden = []
    for holder in holders_of_experts(getattr(model, "lm", model)):
        for module in list(holder.modules()):
            bare = {n for n, part in module._modules.items() if part is not None and _holds_nothing(part)}
            if bare:
                hidden.append((module, dict(module._modules)))
            for name in bare:
                del module._modules[name]
    try:
        yield
    finally:
        for module, parts in reversed(hidden):
            module._modules.clear()
            module._modules.update(parts)


def wanting_gradient(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a forward with one that wants a gradient, where anything of the module trains.

    Without one torch's hook on its backward pass runs before the parameters have their gradients.
    """
    tensors = [value for value in args if isinstance(value, Tensor)]
    trains = torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())
    if not trains or any(value.requires_grad for value in tensors):
        return args, kwargs
    first = next((value for value in tensors if value.is_floating_point()), None)
    changed = None if first is None else first.detach().requires_grad_()
    return tuple(changed if value is first else value for value in args), kwargs


class _Settled:
    """Two hooks on a module: nodes for its parameters before what it was given, and a look at what it answers."""

    def __init__(self, module: nn.Module, parameters: list[nn.Parameter]) -> None:
        self._parameters = parameters
        _gather_with(module, parameters)
        self._missed: set[int] = set()
        """Of the last forward pass, the places of parameters that its answer is not made from. Its nodes hold it too:
        one that recomputes may end before it answers."""
        module.register_forward_pre_hook(self._before, with_kwargs=True)
        module.register_forward_hook(self._after, with_kwargs=True, prepend=True)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not torch.is_grad_enabled():
            return None
        missed: set[int] = set()
        self._missed = missed
        values = [*args, *kwargs.values()]
        first = next(
            (i for i, v in enumerate(values) if isinstance(v, Tensor) and v.is_floating_point()), None
        )
        if first is None:
            return None
        for place, parameter in enumerate(self._parameters):
            values[first] = _late(values[first], parameter, place, missed)
        return tuple(values[: len(args)]), dict(zip(kwargs, values[len(args) :], strict=True))

    def _after(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        if not torch.is_grad_enabled():
            return None
        parts = list(output) if isinstance(output, list | tuple) else [output]
        places = [i for i, v in enumerate(parts) if isinstance(v, Tensor) and v.is_floating_point()]
        inputs = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.requires_grad]
        lost = _lost([parts[i] for i in places], [*inputs, *self._parameters])
        self._missed |= {i for i, parameter in enumerate(self._parameters) if id(parameter) in lost}
        unheard = [value for value in inputs if id(value) in lost]
        if not places or not unheard:
            return None
        parts[places[0]] = _heard(parts[places[0]], *unheard)
        return tuple(parts) if isinstance(output, list | tuple) else parts[0]


def _gather_with(module: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
    """Let ZeRO-3 gather what a module reads of its parts when the module begins: the factors of experts."""
    direct = {id(parameter) for parameter in module._parameters.values()}
    for parameter in parameters:
        if hasattr(parameter, "ds_id") and id(parameter) not in direct:
            import deepspeed

            deepspeed.zero.register_external_parameter(module, parameter)


def _lost(outputs: Sequence[Tensor], wanted: Sequence[Tensor]) -> set[int]:
    """Return the ids of tensors that no output was made from. Looks no further than the tensors, and ends with them."""
    places = {torch.autograd.graph.get_gradient_edge(tensor).node: id(tensor) for tensor in wanted}
    seen: set[Any] = set()
    stack: list[Any] = [output.grad_fn for output in outputs if output.grad_fn is not None]
    while stack and places:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if places.pop(node, None) is None:
            stack += [before for before, _ in node.next_functions if before is not None]
    return set(places.values())


def _holds_nothing(module: nn.Module) -> bool:
    return next(module.parameters(), None) is None and next(module.buffers(), None) is None


class _Late(torch.autograd.Function):
    """Gives back its tensor. A parameter's gradient waits for it, and is 0 if there was none."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, parameter: nn.Parameter, place: int, missed: set[int]) -> Tensor:
        # What is sharded holds nothing where it is not gathered, and tells its whole size beside.
        ctx.kind = (tuple(getattr(parameter, "ds_shape", parameter.shape)), parameter.dtype, parameter.device)
        ctx.place, ctx.missed = place, missed
        return given.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        shape, dtype, device = ctx.kind
        is_zero = ctx.place in ctx.missed
        return gradients[0], torch.zeros(shape, dtype=dtype, device=device) if is_zero else None, None, None


class _Heard(torch.autograd.Function):
    """Gives back its first tensor, and gradients of zeros to the others."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, *others: Tensor) -> Tensor:
        ctx.kinds = [(t.shape, t.dtype, t.device) for t in others]
        return given.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        zeros = (torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.kinds)
        return gradients[0], *zeros


_late: Any = _Late.apply
_heard: Any = _Heard.apply
