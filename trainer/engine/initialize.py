"""Building the engine: deepspeed.initialize, and which of our classes keep gradients in the place of its own."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import nn

from trainer.engine.engine import Engine
from trainer.engine.spread_layout import Spread
from trainer.engine.unreached import settle_gradients, wanting_gradient, weightless_hidden
from trainer.errors import ConfigError
from trainer.model.calling import calling_parts, looping_parts
from trainer.model.choosing import owners_of_lists

_LOG = logging.getLogger(__name__)


def build_engine(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ds_config: dict[str, Any],
    added: Sequence[str] = (),
    spread: Spread | None = None,
) -> Engine:
    """Initialize DeepSpeed. Collective: every rank.

    Args:
        ds_config: Becomes what DeepSpeed was given.
        added: Keys of its configuration that a person added: then its own classes do all.
        spread: How experts are spread over ranks, if they are.
    Raises:
        ConfigError: DeepSpeed refuses a configuration with such keys.
    """
    from deepspeed.runtime import bf16_optimizer

    from trainer.engine import flat, partitioned, sharded

    # Stage 1 in bf16 prints its memory twelve times, and collects garbage each time: two seconds on a CPU.
    bf16_optimizer.see_memory_usage = lambda *args, **options: None
    import_parts()
    stage = int(ds_config["zero_optimization"]["stage"])
    if stage == 3:
        gather_whole(model)
    is_plain = not added and spread is None
    if is_plain and flat.is_for(model, ds_config):
        ds_config.pop("data_types", None)  # flat gradients add up in float32 without another optimizer class
        engine = _initialized(model, optimizer, ds_config, added)
        flat.flatten_gradients(engine.optimizer)
        _LOG.info("Gradients of what trains are in one flat buffer, reduced once a step.")
    elif is_plain and partitioned.is_for(ds_config):
        way = partitioned.ask_for_buckets(optimizer, ds_config)
        engine = _initialized(model, optimizer, ds_config, added)
        partitioned.partition_gradients(engine.optimizer, model, way)
        _LOG.info(
            "Gradients go to the ranks that own them (ZeRO-2); DeepSpeed keeps the rest, as at stage 1."
        )
        return Engine(engine, stage, summed_over=torch_dist.get_world_size())
    else:
        engine = _initialized(model, optimizer, ds_config, added)
        if is_plain and sharded.is_for(ds_config):
            sharded.step_in_one_pass(engine.optimizer)
        if stage == 3:
            _look_at_arguments(model)
        if spread is None and stage > 0 and torch_dist.get_world_size() > 1:
            settle_gradients(model, are_lists_whole=stage == 3)
    if stage == 0 and ds_config["bf16"]["enabled"]:
        # DeepSpeed allocated Adam's state by a step of zero gradients, which counts for the bias correction (the next
        # step is a quarter too small) and decays the master weights. Its pull request 5104 took that out of the other
        # stages.
        optimizer.state.clear()
        engine.optimizer.refresh_fp32_params()
    return Engine(engine, stage, spread)


def _initialized(
    model: nn.Module, optimizer: torch.optim.Optimizer, ds_config: dict[str, Any], added: Sequence[str]
) -> Any:
    import deepspeed

    try:
        with weightless_hidden(model):
            engine, _, _, _ = deepspeed.initialize(
                model=model,
                optimizer=optimizer,
                model_parameters=[p for p in model.parameters() if p.requires_grad],
                config=ds_config,
                dist_init_required=False,
            )
    except (ValueError, AssertionError, NotImplementedError) as error:
        if not added:
            raise
        raise ConfigError(
            f"`zero.extra` must be what DeepSpeed takes, but it refuses {', '.join(added)} instead: "
            f"{' '.join(str(error).split())[:300]}. Change or remove the key."
        ) from error
    return engine


def gather_whole(model: nn.Module) -> None:
    """Let ZeRO-3 gather layers whole which call more of their parts than a forward: those parts it would not gather.

    Gemma 3n's do. Likewise those whose tokens choose among a list of parts, which differ between ranks.

    Raises:
        ConfigError: A layer calls its parts as often as its tokens ask, so that ranks would wait for each other.
    """
    from deepspeed.utils import set_z3_leaf_modules
    from deepspeed.utils.z3_leaf_module import set_z3_leaf_module

    if looping := looping_parts(model):
        raise ConfigError(
            f"`zero.stage` must be at most 2 for this model, but is 3 instead: {looping[0].__name__} calls parts with "
            "weights as often as its tokens ask, and ranks would wait for each other. Set zero.stage=2."
        )
    classes = calling_parts(model)
    if classes:
        set_z3_leaf_modules(model, classes)
        names = " and ".join(found.__name__ for found in classes)
        _LOG.info("ZeRO-3 gathers each %s whole: it calls methods of its parts.", names)
    owners = owners_of_lists(getattr(model, "lm", model))
    for owner in owners:
        set_z3_leaf_module(owner, True)
    if owners:
        names = " and ".join(dict.fromkeys(type(owner).__name__ for owner in owners))
        _LOG.info("ZeRO-3 gathers each %s whole: tokens choose which of its parts run.", names)


def _look_at_arguments(model: nn.Module) -> None:
    """Let torch's hook on the backward pass of what ZeRO-3 gathers whole run when gradients are there, in place.

    DeepSpeed reduces the gradients of such a module by it: of those marked here, and of mixtures that it knows.
    """
    from deepspeed.utils import get_z3_leaf_modules

    for module in get_z3_leaf_modules(model):
        module.register_forward_pre_hook(wanting_gradient, with_kwargs=True, prepend=True)
        module.register_forward_pre_hook(by_place, with_kwargs=True, prepend=True)  # the first of both


def by_place(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a forward by their place, as far as they can be.

    DeepSpeed reduces the gradients of what it gathered whole by torch's hook on a module's backward pass, which looks
    at no argument that has a name: it would run before there is a gradient, and give zeros (JetMoE).
    """
    names = _names_by_place(type(module))  # type: ignore[arg-type]
    placed, named = list(args), dict(kwargs)
    while len(placed) < len(names) and names[len(placed)] in named:
        placed.append(named.pop(names[len(placed)]))
    return tuple(placed), named


@functools.cache
def _names_by_place(kind: type[nn.Module]) -> list[str]:
    """Return the names of what the forward of a class takes by place; looked up once and not in every layer's pass."""
    found = inspect.signature(kind.forward).parameters.items()
    return [name for name, one in found if one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD][1:]


def import_parts() -> None:
    """Import what DeepSpeed would import later, when it builds an engine and when it takes one apart.

    It asks whether the optimizer is its Muon. torch.compile imports its compiler when it decorates that one's
    functions: 2.4 s of each rank's start, for an optimizer that is not ours. Here they are not compiled.
    Source: `python -X importtime -m trainer train`, deepspeed 0.19.8.

    The garbage collector takes engines apart, at any instant. An import then that falls within another one fails with a
    KeyError of Python's own: issue 91351 of CPython, mended in 3.12.
    """
    from deepspeed.runtime import compiler

    compile_functions = compiler.compile
    compiler.compile = lambda: lambda function: function
    try:
        with contextlib.suppress(ImportError):  # of another version: then DeepSpeed does without
            import deepspeed.runtime.zero.muon.original_muon
    finally:
        compiler.compile = compile_functions
    with contextlib.suppress(ImportError):
        import deepspeed.utils.pin_memory  # noqa: F401
