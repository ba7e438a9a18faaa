"""Rules about experts that are spread over ranks. Pure; what depends on the model is asked in engine/spread.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from trainer.config.optim import Offload
from trainer.config.rule import Problem, must
from trainer.config.schema import RunConfig
from trainer.config.tune import TuneMethod

KEY = "zero.expert_parallel"
UNTRIED = ("gradient_predivide_factor", "prescale_gradients", "zero_optimization")
"""Keys of DeepSpeed's that say how gradients are reduced or shards are laid out."""


def expert_problems(config: RunConfig, world_size: int | None) -> Iterator[Problem]:
    """Yield every broken rule.

    Args:
        world_size: Ranks of the run when already known.
    """
    zero, size = config.zero, config.zero.expert_parallel
    if size < 1:
        yield must(KEY, "1 (off) or more", size, f"Set {KEY}=1.")
    if size <= 1:
        return
    ranks = world_size or config.cluster.num_nodes * config.cluster.ranks_per_node
    if ranks > 0 and ranks % size:
        fits = next(count for count in range(min(size, ranks), 0, -1) if ranks % count == 0)
        yield must(
            KEY,
            f"a divisor of the {ranks} ranks" if ranks > 1 else "1 on one rank",
            size,
            f"Set {KEY}={fits}.",
        )
    elif any(nodes * config.cluster.ranks_per_node % size for nodes in config.cluster.smaller):
        rule = f"null, or the ranks of every number of nodes from it on a multiple of {KEY}={size}"
        fix = (
            f"Leave it out, or set {KEY} to a divisor of the {config.cluster.ranks_per_node} ranks of a node."
        )
        yield must("cluster.min_nodes", rule, config.cluster.min_nodes, fix)
    off = f"or {KEY}=1"
    if zero.stage == 0:
        yield must("zero.stage", f"1, 2 or 3 with {KEY}={size}", zero.stage, f"Set zero=zero2, {off}.")
    if config.tune.method is not TuneMethod.full:
        method = config.tune.method.value
        yield must("tune.method", f"full with {KEY}={size}", method, f"Set tune=full, {off}.")
    if config.train.router_bias_rate:
        rule = f"0 with {KEY}={size}, with which it was never tried"
        yield must("train.router_bias_rate", rule, config.train.router_bias_rate, f"Set it to 0, {off}.")
    for name in ("offload_optimizer", "offload_param"):
        if getattr(zero, name) is Offload.cpu:
            fix = f"Set zero.{name}=none, {off}. (Experts that are spread were never tried in host memory.)"
            yield must(f"zero.{name}", f"none with {KEY}={size}", "cpu", fix)
    for key in UNTRIED:
        if key in zero.extra:
            shown = dict(zero.extra[key]) if isinstance(zero.extra[key], Mapping) else zero.extra[key]
            fix = f"Remove it, {off}. (It was never tried with experts that are spread.)"
            yield must(f"zero.extra.{key}", f"left out with {KEY}={size}", shown, fix)


def no_expert_problems(config: RunConfig, num_experts: int, model_type: str) -> Iterator[Problem]:
    """Yield what is asked of the experts of a model that has none.

    Args:
        num_experts: Parameters of experts.
    """
    if num_experts:
        return
    rate, rule = config.train.router_bias_rate, f"for {model_type}, which has no experts"
    if config.zero.expert_parallel > 1:
        yield must(KEY, f"1 {rule}", config.zero.expert_parallel, f"Set {KEY}=1.")
    if rate:
        yield must("train.router_bias_rate", f"0 {rule}", rate, "Set train.router_bias_rate=0.")
