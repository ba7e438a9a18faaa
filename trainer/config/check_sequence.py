"""Rules about packs whose tokens ranks share. Pure; what depends on the model is asked in model/token_slices.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trainer.config.data import PackingMode
from trainer.config.model import Attention
from trainer.config.objective import ObjectiveKind
from trainer.config.rule import Problem, must
from trainer.config.schema import RunConfig

KEY = "train.sequence_parallel"


def sequence_problems(config: RunConfig, world_size: int | None) -> Iterator[Problem]:
    """Yield every broken rule.

    Args:
        world_size: Ranks of the run when already known.
    """
    size, seq_len = config.train.sequence_parallel, config.data.seq_len
    if size < 1:
        yield must(KEY, "1 (off) or more", size, f"Set {KEY}=1.")
    if size <= 1:
        return
    yield from _rank_problems(config, world_size)
    if seq_len % size:
        rule = f"a multiple of {KEY}={size}"
        yield must("data.seq_len", rule, seq_len, f"Set data.seq_len={-(-seq_len // size) * size}.")
    yield from _untaken(config)


def _rank_problems(config: RunConfig, world_size: int | None) -> Iterator[Problem]:
    """Yield what is wrong with the number of ranks, or with what is left of nodes that are lost."""
    size, cluster = config.train.sequence_parallel, config.cluster
    ranks = world_size or cluster.num_nodes * cluster.ranks_per_node
    if ranks > 0 and ranks % size:
        fits = next(count for count in range(min(size, ranks), 0, -1) if ranks % count == 0)
        rule = f"a divisor of the {ranks} ranks" if ranks > 1 else "1 on one rank"
        yield must(KEY, rule, size, f"Set {KEY}={fits}.")
    elif any(nodes * cluster.ranks_per_node % size for nodes in cluster.smaller):
        rule = f"null, or the ranks of every number of nodes from it on a multiple of {KEY}={size}"
        fix = f"Leave it out, or set {KEY} to a divisor of the {cluster.ranks_per_node} ranks of a node."
        yield must("cluster.min_nodes", rule, cluster.min_nodes, fix)


def _untaken(config: RunConfig) -> Iterator[Problem]:
    """Yield what was never made to work on a part of a pack."""
    size, off = config.train.sequence_parallel, f"or {KEY}=1"
    kind, method = config.objective.kind, config.tune.method
    taken = f"with {KEY}={size}"
    if kind is not ObjectiveKind.causal_lm:
        yield must("objective.kind", f"causal_lm {taken}", kind.value, f"Set objective=causal_lm, {off}.")
    if config.replay.kl.beta:
        yield must("replay.kl.beta", f"0 {taken}", config.replay.kl.beta, f"Set it to 0, {off}.")
    if config.tune.is_virtual:
        rule = f"one without virtual tokens {taken}"
        yield must("tune.method", rule, method.value, f"Set tune=lora, {off}.")
    if config.data.packing is PackingMode.none:
        yield must("data.packing", f"auto {taken}", "none", f"Set data.packing=auto, {off}.")
    if config.model.attention is Attention.eager:
        yield must("model.attention", f"auto {taken}", "eager", f"Set model.attention=auto, {off}.")
    if config.zero.expert_parallel > 1:
        yield must("zero.expert_parallel", f"1 {taken}", config.zero.expert_parallel, f"Set it to 1, {off}.")
    if config.train.router_bias_rate:
        rate = config.train.router_bias_rate
        yield must("train.router_bias_rate", f"0 {taken}", rate, f"Set it to 0, {off}.")


def head_problems(size: int, num_heads: Sequence[int]) -> Iterator[Problem]:
    """Yield a problem where ranks do not divide the heads of attention of a model.

    Args:
        num_heads: Of its layers, as far as they differ.
    """
    if size > 1 and any(number % size for number in num_heads):
        most = next(part for part in range(size, 0, -1) if not any(number % part for number in num_heads))
        rule = f"a divisor of the model's {' and '.join(map(str, num_heads))} heads of attention"
        yield must(KEY, rule, size, f"Set {KEY}={most}.")


def batch_rule(size: int) -> str:
    """Return what the tokens of a step must be, where so many ranks share each pack."""
    if size == 1:
        return "a multiple of ranks x micro batch x seq_len"
    return f"a multiple of ranks / {KEY} x micro batch x seq_len"
