"""Time all-reduces inside nodes, between nodes, and between two nodes at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as torch_dist

from trainer.dist.env import RankEnv
from trainer.preflight.floor import bus_bandwidth, neighbours

MIB = 2**20
LARGEST = {"cuda": 256 * MIB, "cpu": 16 * MIB}
"""Bytes of a tensor: bandwidths of NVLink are reached from some 100 MiB on."""
MEASURE_S = 0.6
MAX_REPEATS = 20


def open_group(env: RankEnv, store: Any, device: torch.device, wait_s: float) -> None:
    """Join the group of all processes, who meet at a store of torch. Collective.

    Raises:
        RuntimeError: The processes do not reach each other.
    """
    on_gpu = device.type == "cuda"
    # NCCL's own watchdog ends a process without a sentence: that of the check comes first.
    timeout_s = wait_s + 600 if on_gpu else wait_s
    torch_dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=store,
        rank=env.rank,
        world_size=env.world_size,
        timeout=timedelta(seconds=timeout_s),
    )


def measure_within(env: RankEnv, nodes: Sequence[str], device: torch.device) -> float | None:
    """Return the bandwidth among the processes of this node. Collective; `nodes` has the node of every rank."""
    return _bandwidth([rank for rank, node in enumerate(nodes) if node == nodes[env.rank]], device)


def measure_between(env: RankEnv, nodes: Sequence[str], device: torch.device) -> float | None:
    """Return the bandwidth among the processes of this local rank on all nodes.

    Ranks:
        Collective. All processes of a node talk to the other nodes at once, as in training.
    """
    # Nodes begin together, whatever happened inside them.
    _barrier(device)
    mine = _local(nodes, env.rank)
    return _bandwidth([rank for rank in range(env.world_size) if _local(nodes, rank) == mine], device)


def measure_pairs(env: RankEnv, nodes: Sequence[str], device: torch.device) -> dict[str, float]:
    """Return the bandwidths between this node and its neighbours, alone with each; empty on all but first processes.

    Two that exchange a tensor move as much over their link as two in an all-reduce do, and need no group for it.

    Ranks:
        Collective.
    """
    first = {node: nodes.index(node) for node in dict.fromkeys(nodes)}
    found: dict[str, float] = {}
    for pairs in neighbours(list(first)):
        for one, other in pairs:
            if env.rank == first[one]:
                found[other] = _exchange_rate(first[other], device)
            elif env.rank == first[other]:
                _exchange_rate(first[one], device)
        _barrier(device)
    return found


def _exchange_rate(peer: int, device: torch.device) -> float:
    """Return 10^9 bytes a second that go each way while this process and another exchange a tensor."""
    _exchange(peer, MIB, device)
    seconds = _exchange(peer, MIB, device)
    # Both saw the same exchange, but on their own clocks: they agree by one more.
    mine, theirs = torch.tensor([seconds], device=device), torch.zeros(1, device=device)
    _swap(peer, mine, theirs)
    seconds = max(float(mine.item()), float(theirs.item()))
    num_bytes = min(LARGEST[device.type], max(MIB, int(MIB * MEASURE_S / 4 / seconds)))
    return num_bytes / _exchange(peer, num_bytes, device) / 1e9


def _exchange(peer: int, num_bytes: int, device: torch.device) -> float:
    sent = torch.zeros(num_bytes // 4, device=device, dtype=torch.float32)
    received = torch.empty_like(sent)
    _wait(device)
    start = time.perf_counter()
    _swap(peer, sent, received)
    _wait(device)
    return time.perf_counter() - start


def _swap(peer: int, sent: torch.Tensor, received: torch.Tensor) -> None:
    both = [
        torch_dist.P2POp(torch_dist.isend, sent, peer),
        torch_dist.P2POp(torch_dist.irecv, received, peer),
    ]
    for work in torch_dist.batch_isend_irecv(both):
        work.wait()


def _barrier(device: torch.device) -> None:
    """Wait for all processes. NCCL is told the device, which it would otherwise guess from the rank, and warn."""
    torch_dist.barrier(device_ids=[device.index] if device.type == "cuda" else None)


def _local(nodes: Sequence[str], rank: int) -> int:
    """Return a rank's number on its node."""
    return list(nodes[:rank]).count(nodes[rank])


def _bandwidth(ranks: list[int], device: torch.device) -> float | None:
    """Return the bus bandwidth of an all-reduce among some ranks in 10^9 bytes a second; None for one alone."""
    # Also of one alone: torch counts the groups of a process into the name of the next (2.13), which must be the same
    # on all its ranks.
    group = torch_dist.new_group(ranks, use_local_synchronization=True)
    if len(ranks) < 2:
        return None
    # The first opens connections; the second says what a slow network can be asked for.
    _seconds(group, MIB, 1, device)
    each_s = _agreed(_seconds(group, MIB, 1, device), group, device)
    num_bytes = min(LARGEST[device.type], max(MIB, int(MIB * MEASURE_S / 4 / each_s)))
    each_s = _agreed(_seconds(group, num_bytes, 1, device), group, device)
    repeats = max(1, min(MAX_REPEATS, int(MEASURE_S / each_s)))
    seconds = _agreed(_seconds(group, num_bytes, repeats, device) / repeats, group, device)
    return bus_bandwidth(num_bytes, seconds, len(ranks))


def _seconds(group: Any, num_bytes: int, repeats: int, device: torch.device) -> float:
    """Return the seconds that all-reduces of one size take this process."""
    tensor = torch.zeros(num_bytes // 4, device=device, dtype=torch.float32)
    _wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        torch_dist.all_reduce(tensor, group=group)
    _wait(device)
    return time.perf_counter() - start


def _agreed(seconds: float, group: Any, device: torch.device) -> float:
    """Return the longest of all times, so that all go on with the same sizes."""
    tensor = torch.tensor([seconds], device=device, dtype=torch.float64)
    torch_dist.all_reduce(tensor, op=torch_dist.ReduceOp.MAX, group=group)
    return float(tensor.item())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
