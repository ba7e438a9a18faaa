"""Compare all-reduce bandwidths with their floors, and find the node that a slow one is slow because of. Pure."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from trainer.config.rule import observed
from trainer.preflight.facts import BandwidthFacts, Check, NodeProblem, Row

GPU_WITHIN = 4.0
"""Below PCIe 3.0 x8; a slot that fell back to x4 gives 3.9."""
GPU_BETWEEN = 0.5
"""Between a network of 1 Gb/s (0.12) and one of 10 Gb/s (1.2)."""


@dataclass(frozen=True, slots=True)
class Floors:
    """Least bus bandwidths of a node in 10^9 bytes a second; None: only reported."""

    within: float | None
    between: float | None


def floors_of(within: float | None, between: float | None, on_gpu: bool) -> Floors:
    """Return the given floors, and those of GPUs where none are given."""
    if not on_gpu:
        return Floors(within, between)
    return Floors(
        GPU_WITHIN if within is None else within,
        GPU_BETWEEN if between is None else between,
    )


def bus_bandwidth(num_bytes: int, seconds: float, num_ranks: int) -> float:
    """Return the bus bandwidth of an all-reduce in 10^9 bytes a second.

    Source:
        nccl-tests, doc/PERFORMANCE.md: size / time x 2 (n - 1) / n, which the number of ranks does not change.
    """
    return num_bytes / seconds * 2 * (num_ranks - 1) / num_ranks / 1e9


def neighbours(nodes: Sequence[str]) -> Iterator[list[tuple[str, str]]]:
    """Yield rounds of pairs: in each a node is in one pair at most, and all rounds are a chain or a ring."""
    ring = list(itertools.pairwise(nodes))
    if len(nodes) > 2:
        ring.append((nodes[-1], nodes[0]))
    yield ring[0 : 2 * (len(nodes) // 2) : 2]
    yield ring[1 : 2 * (len(nodes) // 2) : 2]
    if len(nodes) % 2 and len(nodes) > 1:
        yield ring[-1:]


def between_by_node(facts: Sequence[BandwidthFacts]) -> dict[str, float]:
    """Return what each node moves to the others: all its processes do so at once, each with its peers."""
    total: dict[str, float] = defaultdict(float)
    for one in facts:
        if one.between is not None:
            total[one.node] += one.between
    return dict(total)


def judge_within(facts: Sequence[BandwidthFacts], floor: float | None) -> tuple[Row, list[NodeProblem]]:
    """Compare the all-reduce inside each node with the floor."""
    lowest: dict[str, float] = {}
    failed = [one for one in facts if one.error is not None]
    if failed:
        # Those that only waited for others say so.
        reasons = [one for one in failed if "timeout" not in str(one.error).lower()]
        return Row(Check.within, len({one.node for one in facts}), "failed", True), [
            _failed(one) for one in reasons or failed
        ]
    for one in facts:
        if one.within is not None:
            lowest[one.node] = min(one.within, lowest.get(one.node, one.within))
    if not lowest:
        return Row(Check.within, 0, "one process a node"), []
    problems = [
        NodeProblem(
            Check.within,
            (node,),
            observed(
                f"all-reduce in {node}",
                f"at least {floor:g} GB/s (cluster.preflight.min_intra_node_gb_per_s)",
                f"{rate:.3g}",
                f"See `nvidia-smi topo -m` and NCCL_DEBUG=INFO on {node}: NVLink or a PCIe slot may be down.",
            ),
        )
        for node, rate in lowest.items()
        if floor is not None and rate < floor
    ]
    slowest = min(lowest, key=lambda node: lowest[node])
    return Row(Check.within, len(lowest), _result(lowest[slowest], slowest, floor), bool(problems)), problems


def judge_between(facts: Sequence[BandwidthFacts], floor: float | None) -> tuple[Row, list[NodeProblem]]:
    """Compare the all-reduce between nodes with the floor; the measurements in pairs say who is slow."""
    rates = between_by_node(facts)
    if any(one.error is not None for one in facts):
        return Row(Check.between, 0, "not measured"), []
    if not rates:
        return Row(Check.between, 0, "one node"), []
    slowest = min(rates, key=lambda node: rates[node])
    row = Row(Check.between, len(rates), _result(rates[slowest], slowest, floor))
    if floor is None or rates[slowest] >= floor:
        return row, []
    pairs = {(one.node, other): rate for one in facts for other, rate in one.pairs.items()}
    nodes, seen = _slow_nodes(list(rates), pairs)
    text = observed(
        f"all-reduce between {', '.join(nodes)}"
        if len(nodes) == len(rates)
        else f"all-reduce between {', '.join(nodes)} and others",
        f"at least {floor:g} GB/s a node (cluster.preflight.min_inter_node_gb_per_s)",
        f"{rates[slowest]:.3g}",
        f"{seen}Name the fast network in cluster.nccl.NCCL_SOCKET_IFNAME or NCCL_IB_HCA, "
        "and look at NCCL_DEBUG=INFO and the links of these nodes (ibstat, ethtool).",
    )
    return Row(row.check, row.nodes, row.result, True), [NodeProblem(Check.between, tuple(nodes), text)]


def _failed(one: BandwidthFacts) -> NodeProblem:
    text = observed(
        f"all-reduce on {one.node} (rank {one.rank})",
        "able to reach the other processes",
        str(one.error),
        "Name the network in cluster.nccl.NCCL_SOCKET_IFNAME (cluster.environment.GLOO_SOCKET_IFNAME on CPUs); the "
        "host name must not resolve to 127.0.0.1 or 127.0.1.1 there (getent hosts $(hostname)).",
    )
    return NodeProblem(Check.within, (one.node,), text)


def _slow_nodes(nodes: list[str], pairs: Mapping[tuple[str, str], float]) -> tuple[list[str], str]:
    """Return the nodes that are slow with everybody, and what was seen; all where no one stands out."""
    best: dict[str, float] = {}
    for (one, other), rate in pairs.items():
        for node in (one, other):
            best[node] = max(rate, best.get(node, 0.0))
    if len(best) < 3:
        return nodes, ""
    # A healthy node has a healthy neighbour, unless both are sick.
    slow = [node for node in nodes if best.get(node, 0.0) < max(best.values()) / 2]
    if not slow:
        return nodes, ""
    shown = ", ".join(f"{node} {best.get(node, 0.0):.3g}" for node in slow)
    return slow, f"Alone with one other node, {shown} GB/s at best, others up to {max(best.values()):.3g}. "


def _result(rate: float, slowest: str, floor: float | None) -> str:
    judged = "no floor" if floor is None else f"floor {floor:g}"
    return f"{rate:.3g} GB/s at least ({slowest}), {judged}"
