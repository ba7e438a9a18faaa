"""Prove on the loaded model that the gradient of the loss is the one that the model's own code gives.

A kernel, a mask, a recomputed layer or the head may be right forward and wrong backward: the run would train, and
worse, without a sign. So one document goes both ways through the model, once as the objective does it and once by the
model's own forward without kernels and recomputation, and the gradients of what flows into each layer are compared:
what flows out of the input embeddings has passed the backward of everything behind it. That is an activation and not a
parameter, so it is there when everything is frozen or packed, and under ZeRO-3 nothing is gathered for it but what the
pass itself gathers. What trains of the first layer is compared too: an activation says nothing of how a layer's own
parameters get theirs.

Shapes: T tokens of a document, H hidden, V vocabulary.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from trainer.data.pack.collate import IGNORE, MicroBatch, collate
from trainer.data.types import Pack
from trainer.engine.policy import Policy
from trainer.errors import SelfCheckError
from trainer.evaluate.proofs.called import BeforePass, anywhere, at_once, called
from trainer.model.flow import EMBEDDINGS, HEAD, early_parameters, recomputing, watching
from trainer.model.head.ask import OwnLogits, working_type
from trainer.model.head.head import head_of
from trainer.model.head.nll import Nll
from trainer.model.head.rewards import Rewards, is_scorer
from trainer.model.own_code import OwnCode
from trainer.model.tune.prompt import virtual_off

_LOG = logging.getLogger(__name__)

NUM_TOKENS = 64
PASSES = 3
"""Forward passes that one forward and backward takes."""
NOISE = 4.0
"""Times the rounding that was measured, up to which a difference is rounding. Measured by moving what the embeddings
give by one unit in the last place: every later operation then rounds anew, as between two kernels."""
FLOOR = {torch.float64: 1e-7, torch.float32: 1e-4}
"""Largest difference allowed anyway, as a share of a position's largest: as between two kernels of attention, see
agreement.py. 2^-5 for other types: the backward pass rounds as often again as the forward, of which 2^-6 is allowed."""

LEAST = 1e-3
"""Share of the layer's largest gradient below which a parameter's is rounding: that of a key's bias is 0 but for it."""


class Slopes(NamedTuple):
    """The loss of a document, and gradients by the place or the parameter they belong to."""

    loss: float
    places: dict[str, Tensor]
    """In the order of a pass."""
    parameters: dict[str, Tensor]


def gradient_work(seq_len: int) -> int:
    """Return the tokens that `check_gradient` sends through the model; a backward pass counts as two more."""
    return 2 * PASSES * min(seq_len, NUM_TOKENS)


def check_gradient(
    policy: Policy, own_code: OwnCode, hf_config: Any, seq_len: int, before_pass: BeforePass = at_once
) -> float:
    """Compare gradients of one document with those of the model's own code; return how far they are apart at most.

    Rounding is measured only where more is found than what is allowed anyway. Collective: every rank.

    Raises:
        SelfCheckError: They differ by more than rounding.
    """
    num_tokens = policy.row_length(min(seq_len, NUM_TOKENS))
    micro = _document(num_tokens, hf_config.get_text_config().vocab_size)
    work = PASSES * min(seq_len, NUM_TOKENS)
    with virtual_off(policy.module):
        with own_code.restored() as num_kernels:
            before_pass(work)
            own = _own(policy, micro, 0.0)
        before_pass(work)
        ours, num_recomputed = _ours(policy, micro)
        dtype = own.places[EMBEDDINGS].dtype
        floor = FLOOR.get(dtype, 2.0**-5)
        places, parameters = _differences(own, ours, not head_of(policy.module).bend.is_none)
        of_places, of_parameters = dict.fromkeys(places, 0.0), dict.fromkeys(parameters, 0.0)
        is_apart = not all(apart <= floor for apart in (*places.values(), *parameters.values()))
        if anywhere(policy.mesh, is_apart):
            with own_code.restored():
                before_pass(work)
                again = _own(policy, micro, torch.finfo(dtype).eps)
            of_places, of_parameters = _differences(own, again, False)
    if not math.isfinite(own.loss):
        _LOG.warning("The model's loss is not finite: that its gradient is the model's own cannot be proved.")
        return float("nan")
    after = ""
    for place, apart in places.items():
        allowed = max(NOISE * of_places[place], floor)
        if not apart <= allowed:
            _refuse(f"in {_described(place, after, hf_config)}", apart, allowed, num_kernels, num_recomputed)
        after = place
    for name, apart in parameters.items():
        allowed = max(NOISE * of_parameters[name], floor)
        if not apart <= allowed:
            _refuse(f"of {name}", apart, allowed, num_kernels, num_recomputed)
    worst = max((*places.values(), *parameters.values()), default=0.0)
    _LOG.info(
        "The gradient is that of the model's own code: compared at %d places between layers and for %d parameters, it "
        "differs by %.1e of the largest one at most (%d layers recomputed, %d kernels).",
        len(ours.places),
        len(own.parameters),
        worst,
        num_recomputed,
        num_kernels,
    )
    return worst


def _differences(own: Slopes, other: Slopes, is_bent: bool) -> tuple[dict[str, float], dict[str, float]]:
    """Return how far other gradients are from the model's own: by place, from the last of a pass on, and by parameter.

    Args:
        is_bent: The other's output layer may get its input in another scale.
    """
    places: dict[str, float] = {}
    for place in reversed([place for place in own.places if place in other.places]):
        found = other.places[place]
        if own.places[place].numel() > found.numel():
            continue  # another layout; the places around it tell
        if place == HEAD and is_bent:
            found = _fitted(own.places[place], found)
        places[place] = _apart(own.places[place], found)
    least = LEAST * max((float(g.double().norm()) for g in own.parameters.values()), default=0.0)
    return places, {
        name: _share(gradient, other.parameters[name], least) for name, gradient in own.parameters.items()
    }


def _document(num_tokens: int, vocab_size: int) -> MicroBatch:
    tokens = np.random.default_rng(0).integers(0, vocab_size, num_tokens)
    return collate([Pack(tokens, np.ones(num_tokens, dtype=bool), [num_tokens])], [0], num_tokens, 0)


def _own(policy: Policy, micro: MicroBatch, moved: float) -> Slopes:
    """Go both ways by the model's own forward."""
    tokens_1T, labels_T = (
        torch.from_numpy(a).to(policy.device) for a in (micro.tokens_BT, micro.labels_BT[0])
    )

    def loss(module: nn.Module) -> Tensor:
        if is_scorer(module):
            return torch.as_tensor(module(OwnLogits(), input_ids=tokens_1T)).float().sum()
        logits_TV = module(OwnLogits(), input_ids=tokens_1T)[0]
        return nn.functional.cross_entropy(
            logits_TV.to(working_type(logits_TV)), labels_T, ignore_index=IGNORE, reduction="sum"
        )

    return _slopes(policy, loss, moved)[0]


def _ours(policy: Policy, micro: MicroBatch) -> tuple[Slopes, int]:
    """Go both ways as the objective does; also return how many layers were recomputed."""
    labels_T = torch.from_numpy(micro.labels_BT.reshape(-1)).to(policy.device)

    def loss(module: nn.Module) -> Tensor:
        if is_scorer(module):
            last = torch.tensor([micro.num_tokens - 1], device=policy.device)
            return torch.as_tensor(module(Rewards(last), **policy.inputs(micro))).sum()
        return torch.as_tensor(module(Nll(labels_T), **policy.inputs(micro))[0])

    devices = [policy.device] if policy.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        before = _random_states(devices)
        found, num_recomputed = _slopes(policy, loss, recomputes=True)
        is_random = not all(map(torch.equal, before, _random_states(devices)))
    if (
        is_random
    ):  # a layer that drops out by itself, and not by a module in it, does so wherever it recomputes
        _LOG.warning(
            "Recomputed layers drop out at random: their gradient is compared without recomputing them."
        )
        found, num_recomputed = _slopes(policy, loss)
    return _of_pack(policy, found), num_recomputed


def _of_pack(policy: Policy, found: Slopes) -> Slopes:
    """Return the slopes of a whole row where ranks share it. Collective: every rank."""
    slices = policy.slices
    if slices is None:
        return found
    loss = slices.summed(torch.tensor(found.loss, dtype=torch.float64, device=policy.device))
    return Slopes(
        float(loss),
        {place: slices.joined(gradient) for place, gradient in found.places.items()},
        {name: slices.summed(gradient) for name, gradient in found.parameters.items()},
    )


def _random_states(devices: list[torch.device]) -> list[Tensor]:
    return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]


def _slopes(
    policy: Policy, loss_of: Callable[[nn.Module], Tensor], moved: float = 0.0, recomputes: bool = False
) -> tuple[Slopes, int]:
    """Return the gradients of a loss, and how many layers were recomputed for them."""
    with policy.engine.differentiating() as module, called("The model, with a gradient,"):
        early = early_parameters(module)
        with recomputing(module if recomputes else nn.Module()) as num_recomputed:
            with watching(cast(Any, module).lm, moved) as seen:
                loss = loss_of(module)
            places = _kept(seen)
            found = torch.autograd.grad(loss, [*seen.values(), *early.values()], allow_unused=True)
    if policy.balance is not None:  # the routers' own loss is no part of this
        policy.balance.take()
        policy.balance.take_seen()
    parameters = {name: g for name, g in zip(early, found[len(seen) :], strict=True) if g is not None}
    in_order = {place: places[place] for place in seen if place in places}
    return Slopes(float(loss.detach()), in_order, parameters), num_recomputed


def _kept(seen: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return where copies of the gradients will be: a kernel may write its own over the one that it is given.

    Liger 0.8.5's norms do, of which the output layer's input comes.
    """
    kept: dict[str, Tensor] = {}

    def keep(place: str) -> Callable[[Tensor], None]:
        return lambda gradient: kept.__setitem__(place, gradient.clone())

    for place, tensor in seen.items():
        tensor.register_hook(keep(place))  # type: ignore[no-untyped-call, unused-ignore]
    return kept


def _apart(own: Tensor, other: Tensor) -> float:
    """Return the largest difference of a position as a share of its largest number: the median over positions.

    A token that rounding sends to another expert does not move that.
    """
    own_TH = own.reshape(-1, own.shape[-1]).double()
    other_TH = other.reshape(-1, other.shape[-1])[: len(own_TH)].double()
    is_learnt_T = own_TH.abs().amax(-1) > 0
    shares = (own_TH - other_TH).abs().amax(-1)[is_learnt_T] / own_TH.abs().amax(-1)[is_learnt_T]
    if not shares.numel():
        return float(other_TH.abs().max() > 0)
    return float("nan") if shares.isnan().any() else float(shares.median())


def _fitted(own: Tensor, other: Tensor) -> Tensor:
    """Return a gradient times what brings it nearest: some models scale what goes into the output layer, we after it.

    A wrong scale is seen at the layer before.
    """
    other_TH, own_TH = (g.double().reshape(-1, g.shape[-1]) for g in (other, own))
    other_TH = other_TH[: len(own_TH)]
    return other_TH * ((own_TH * other_TH).sum() / other_TH.square().sum().clamp(min=1e-30))


def _share(own: Tensor, other: Tensor, least: float) -> float:
    """Return the norm of the difference as a share of that of the gradient, or of the least that is no rounding."""
    norm, apart = float(own.double().norm()), float((own.double() - other.double()).norm())
    return apart / max(norm, least) if apart else 0.0


def _described(place: str, after: str, hf_config: Any) -> str:
    """Name what stands between a place whose gradient is wrong and the next, whose gradient is right."""
    if place == HEAD:
        return "the output layer and the loss"
    if place == EMBEDDINGS:
        return f"what stands before {after}"
    kinds = getattr(hf_config.get_text_config(), "layer_types", None) or ()
    number = place.rsplit(".", 1)[-1]
    kind = f" of the kind {kinds[int(number)]}" if number.isdigit() and int(number) < len(kinds) else ""
    behind = " or what stands behind it" if after in ("", HEAD) else ""
    return f"layer {place}{kind}{behind}"


def _refuse(where: str, apart: float, allowed: float, num_kernels: int, num_recomputed: int) -> None:
    fixes = ["model.kernels=none"] * (num_kernels > 0) + ["model.checkpoint_layers=0"] * (num_recomputed > 0)
    tried = f"Try {' and '.join(fixes)}" if fixes else "Try another model.attention"
    raise SelfCheckError(
        f"The gradient of the loss must be that of the model's own code, but {where} it differs by {apart:.1e} of the "
        f"largest instead (allowed: {allowed:.1e}): the backward pass there is wrong. {tried}, and report this model; "
        "where rounding alone may do that (many layers of experts in bf16), set train.isolation_probe=false."
    )
