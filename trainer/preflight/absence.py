"""Which nodes did not come, and which hang where. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from trainer.config.rule import observed
from trainer.preflight.facts import Check, NodeProblem
from trainer.preflight.verdict import leave_out

DONE = "done"
AWAITS = "awaits the first process"
_FIXES = {
    Check.rendezvous: "Raise cluster.preflight.timeout_s if loading torch takes so long there.",
    Check.versions: "Its disk with the environment may hang.",
    Check.matmul: "Its GPU hangs: see `nvidia-smi` and dmesg there.",
    Check.run_dir: "The disk of the run directory hangs there: try `ls` on it.",
    Check.clocks: "Its process ended or stands still: see its lines above.",
    Check.within: "See NCCL_DEBUG=INFO: NVLink, PCIe or shared memory (/dev/shm) of it may not work.",
    Check.between: "A firewall or a wrong network may stand between nodes: set cluster.nccl.NCCL_SOCKET_IFNAME.",
}


def absent(
    present: Mapping[int, str], world_size: int, expected: Mapping[str, int] | None, hosts: Sequence[str]
) -> dict[str, tuple[int, int]]:
    """Return (processes that came, processes in all) of every node of which some are missing.

    Args:
        present: Node by rank, of those that came.
        expected: Processes by node, as SLURM gave them out.
        hosts: Host of every rank from a hostfile, which may not be what the hosts call themselves.
    """
    missing = [rank for rank in range(world_size) if rank not in present]
    if expected is not None:
        arrived = Counter(present.values())
        short = {node: (arrived[node], num) for node, num in expected.items() if arrived[node] < num}
        if short:
            return short
    if len(hosts) == world_size:
        all_of, gone = Counter(hosts), Counter(hosts[rank] for rank in missing)
        return {host: (all_of[host] - num, all_of[host]) for host, num in gone.items()}
    shown = ", ".join(map(str, missing[:16])) + (", ..." if len(missing) > 16 else "")
    return {f"the node(s) of rank(s) {shown}": (0, len(missing))}


def judge_missing(
    short: Mapping[str, tuple[int, int]], started: Iterable[str], address: str, wait_s: float, is_slurm: bool
) -> Iterator[NodeProblem]:
    """Yield a problem for every node whose processes did not all come.

    Args:
        short: What `absent` returned.
        started: Nodes on which Python began.
    """
    started = set(started)
    for node, (came, num) in short.items():
        if node in started and not came:
            why = (
                f"its Python began, and either still loads torch or does not reach {address}: see its lines "
                "above"
            )
        elif came:
            why = "the others of this node ended or still load torch: see its lines above"
        else:
            why = f"nothing was heard of it: it is off the network, or cannot start Python or see {address}"
        sentence = observed(
            f"rendezvous of {node}",
            f"{num} process(es) that sign in at {address} within {wait_s:.0f} s",
            str(came),
            f"Look at {node}: {why}. {leave_out([node], is_slurm)}",
        )
        yield NodeProblem(Check.rendezvous, (node,), sentence)


def judge_hang(
    phases: Mapping[int, str], nodes: Mapping[int, str], wait_s: float, is_slurm: bool
) -> Iterator[NodeProblem]:
    """Yield a problem for every node with a process that stands at the earliest check of all.

    Args:
        phases: What each rank began last: the value of a check, AWAITS, or DONE.
        nodes: Node of each rank.
    """
    order = [*(check.value for check in Check), AWAITS, DONE]
    where = {rank: order.index(phases.get(rank, Check.rendezvous.value)) for rank in nodes}
    first = min(where.values(), default=len(order) - 1)
    if order[first] in (AWAITS, DONE):
        return
    check = Check(order[first])
    late: dict[str, list[int]] = defaultdict(list)
    for rank, node in nodes.items():
        if where[rank] == first:
            late[node].append(rank)
    all_nodes = set(nodes.values())
    # A collective keeps all who wait for one: that one cannot be told.
    is_common = check in (Check.within, Check.between) and set(late) == all_nodes and len(all_nodes) > 1
    groups = [list(all_nodes)] if is_common else [[node] for node in late]
    for group in groups:
        names = sorted(group)
        ranks = sorted(rank for node in names for rank in late[node])
        out = "" if is_common else f" {leave_out(names, is_slurm)}"
        sentence = observed(
            f"{check.value} on {', '.join(names)}",
            f"done within {wait_s:.0f} s (cluster.preflight.timeout_s)",
            f"unfinished on rank(s) {', '.join(map(str, ranks))}",
            f"{_FIXES.get(check, '')}{out}".strip(),
        )
        yield NodeProblem(check, tuple(names), sentence)


def judge_stuck(
    phases: Mapping[int, str], expected: Mapping[str, int] | None, node: str, at: Check, wait_s: float
) -> list[NodeProblem]:
    """Say what hangs when time is up in the first process itself.

    Args:
        phases: What each rank that came began last; empty when nothing is known of the others.
        node, at: The first process's.
    """
    names = [name for name, num in (expected or {}).items() for _ in range(num)]
    nodes = {rank: names[rank] if rank < len(names) else f"rank {rank}" for rank in phases}
    found = list(judge_hang(phases, nodes, wait_s, is_slurm=expected is not None))
    return found or list(judge_hang({0: at.value}, {0: node}, wait_s, is_slurm=expected is not None))
