"""What the facts of all nodes come to: rows of the table, and a sentence for everything to mend. Pure."""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from trainer.config.many import many
from trainer.config.rule import observed
from trainer.preflight.facts import Check, ClockFacts, FolderFacts, NodeFacts, NodeProblem, RankFacts, Row

_SHOWN = 4
"""Names in one sentence."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the nodes are measured against; the floors and limits are those of cluster.preflight."""

    num_gpus: int | None
    """GPUs of a node; None: as many as ranks where any node has one."""
    ranks_per_node: int
    max_ecc_errors: int
    min_matmul_share: float
    max_clock_skew_s: float
    need_bytes: int | None
    """Room for all checkpoints that will exist at once; None where their size is not known."""
    num_checkpoints: int
    run_dir: str
    is_slurm: bool


def leave_out(nodes: Sequence[str], is_slurm: bool) -> str:
    """Return how to run in SLURM without these nodes until they are mended; elsewhere a person knows."""
    if not is_slurm:
        return ""
    names = ",".join(nodes)
    return (
        f"Until then submit with cluster.exclude='{names}' (sbatch --exclude), or have it drained: scontrol update "
        f"NodeName={names} State=DRAIN Reason=palimpsest."
    )


def judge_versions(facts: Sequence[RankFacts]) -> tuple[Row, list[NodeProblem]]:
    """Compare what all nodes have with what most of them have; of two halves the first node's is right."""
    nodes = {one.node: one.of_node for one in facts if one.of_node is not None}
    problems = [
        problem
        for name in dict.fromkeys(name for of in nodes.values() for name in of.versions)
        for problem in _odd_ones(name, {node: of.versions.get(name) for node, of in nodes.items()})
    ]
    problems += _odd_code({node: of.code for node, of in nodes.items()})
    problems += _odd_ones("the configuration's digest", {node: of.config for node, of in nodes.items()})
    first = next(iter(nodes.values()))
    shown = [
        f"{name} {value}"
        for name, value in first.versions.items()
        if value is not None and name in ("torch", "CUDA", "NCCL", "driver", "deepspeed", "transformers")
    ]
    shown += [f"code {_digest(first.code)}", f"config {first.config[:8]}"]
    return Row(Check.versions, len(nodes), ", ".join(shown), bool(problems)), problems


def _digest(code: Mapping[str, str]) -> str:
    """Return eight characters that stand for all files."""
    return hashlib.sha256(repr(sorted(code.items())).encode()).hexdigest()[:8]


def _odd_ones(name: str, by_node: Mapping[str, str | None]) -> Iterator[NodeProblem]:
    """Yield a problem for every value that is not the one most nodes have."""
    for value, odd, right, others in _minorities(by_node):
        fix = (
            "Submit again, and let nothing write the run directory's config.yaml meanwhile."
            if "configuration" in name
            else "Give all nodes one environment on a shared disk (cluster.python) or one image "
            "(cluster.container.image), and one driver."
        )
        shown = [text and (text[:12] if "digest" in name else text) for text in (value, right)]
        sentence = observed(
            f"{name} on {_names(odd)}",
            f"{shown[1] or 'absent'} as on {_names(others)}",
            str(shown[0] or "absent"),
            fix,
        )
        yield NodeProblem(Check.versions, tuple(odd), sentence)


def _odd_code(by_node: Mapping[str, Mapping[str, str]]) -> Iterator[NodeProblem]:
    whole = {node: _digest(code) for node, code in by_node.items()}
    for value, odd, right, others in _minorities(whole):
        mine, theirs = by_node[odd[0]], by_node[others[0]]
        files = sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))
        sentence = observed(
            f"palimpsest's code on {_names(odd)}",
            f"{right} as on {_names(others)}",
            str(value),
            f"It differs in {_names(files)}: install the same version there, or one that all nodes share.",
        )
        yield NodeProblem(Check.versions, tuple(odd), sentence)


def _minorities(
    by_node: Mapping[str, str | None],
) -> Iterator[tuple[str | None, list[str], str | None, list[str]]]:
    """Yield (value, its nodes, the usual value, its nodes); the first of equally frequent values is usual."""
    counts = Counter(by_node.values())
    right = max(counts, key=lambda value: counts[value])
    others = [node for node, value in by_node.items() if value == right]
    for value in counts:
        if value != right:
            yield value, [node for node, of in by_node.items() if of == value], right, others


def _names(names: Sequence[str]) -> str:
    """Return the names, or the first of many."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def judge_gpus(facts: Sequence[RankFacts], asked: Expected) -> tuple[Row, list[NodeProblem]]:
    """Tell which nodes lack GPUs and which GPUs are sick."""
    nodes = {one.node: one.of_node for one in facts if one.of_node is not None}
    wanted = asked.num_gpus
    if wanted is None:
        wanted = asked.ranks_per_node if any(of.num_gpus for of in nodes.values()) else 0
    problems = [_missing_gpus(node, of, wanted, asked) for node, of in nodes.items() if of.num_gpus < wanted]
    for one in facts:
        problems += [NodeProblem(Check.gpus, (one.node,), text) for text in _sick(one, asked)]
    gpus = [one.gpu for one in facts if one.gpu is not None]
    if not wanted and not gpus:
        result = "none asked for"
    else:
        kinds = Counter(f"{gpu.name}, {gpu.memory_gib:.0f} GiB" for gpu in gpus)
        result = "; ".join(f"{num} x {kind}" for kind, num in kinds.items()) or "none"
        unread = Counter(gpu.unread for gpu in gpus if gpu.unread is not None)
        result += "; health not read: " + "; ".join(unread) if unread else ""
        hottest = max((gpu.temperature_c for gpu in gpus if gpu.temperature_c is not None), default=None)
        result += f"; at most {hottest} C" if hottest is not None else ""
    return Row(Check.gpus, len(nodes), result, bool(problems)), problems


def _missing_gpus(node: str, of: NodeFacts, wanted: int, asked: Expected) -> NodeProblem:
    why = f" {of.gpu_trouble}." if of.gpu_trouble else ""
    sentence = observed(
        f"GPUs of {node}",
        f"at least the {wanted} that a node is asked for (cluster.gpus_per_node, cluster.ranks_per_node)",
        str(of.num_gpus),
        f"{why.strip()} See `nvidia-smi` there. {leave_out([node], asked.is_slurm)}".strip(),
    )
    return NodeProblem(Check.gpus, (node,), sentence)


def _sick(one: RankFacts, asked: Expected) -> Iterator[str]:
    """Yield a sentence for everything that is wrong with the GPU of a process."""
    out = leave_out([one.node], asked.is_slurm)
    if one.trouble is not None:
        yield observed(
            one.where,
            "able to multiply matrices",
            one.trouble,
            f"See `nvidia-smi` and dmesg of {one.node}. {out}",
        )
    gpu = one.gpu
    if gpu is None:
        return
    if gpu.ecc_errors is not None and gpu.ecc_errors > asked.max_ecc_errors:
        yield observed(
            one.where,
            f"free of uncorrected ECC errors (cluster.preflight.max_ecc_errors={asked.max_ecc_errors})",
            f"{gpu.ecc_errors} since its driver was loaded",
            f"Have it reset: nvidia-smi --gpu-reset -i {gpu.uuid or one.local_rank}. {out}",
        )
    if gpu.is_remap_pending:
        yield observed(
            one.where,
            "free of rows that wait to be remapped",
            "pending",
            f"Have it reset: nvidia-smi --gpu-reset -i {gpu.uuid or one.local_rank}. {out}",
        )
    if gpu.has_remap_failed:
        yield observed(one.where, "able to remap rows", "failed", f"The GPU must be replaced. {out}")
    if gpu.slowdowns:
        yield observed(
            one.where,
            "at full speed under load",
            f"held back by {', '.join(gpu.slowdowns)}",
            f"Look at the cooling and the power supplies of {one.node} (nvidia-smi -q -d PERFORMANCE). {out}",
        )


def judge_matmul(facts: Sequence[RankFacts], asked: Expected) -> tuple[Row, list[NodeProblem]]:
    """Compare every GPU's rate with the median of all; CPUs are reported only."""
    rates = [(one, one.matmul_flops) for one in facts if one.matmul_flops is not None]
    if not rates:
        return Row(Check.matmul, 0, "not measured"), []
    median = statistics.median(rate for _, rate in rates)
    num_nodes = len({one.node for one, _ in rates})
    if not all(one.on_gpu for one, _ in rates):
        return Row(Check.matmul, num_nodes, f"{median / 1e9:.0f} GFLOP/s, fp32 on CPUs: not judged"), []
    problems = [
        NodeProblem(
            Check.matmul,
            (one.node,),
            observed(
                f"matmul rate of {one.where}",
                f"at least {asked.min_matmul_share:g} of the median, {median / 1e12:.0f} TFLOP/s "
                "(cluster.preflight.min_matmul_share)",
                f"{rate / 1e12:.0f} TFLOP/s, {rate / median:.2f} of it",
                f"Look for another job on it, its clocks and its cooling. {leave_out([one.node], asked.is_slurm)}",
            ),
        )
        for one, rate in rates
        if rate < asked.min_matmul_share * median
    ]
    slowest, lowest = min(rates, key=lambda pair: pair[1])
    result = (
        f"median {median / 1e12:.0f} TFLOP/s of bf16, slowest {lowest / median:.2f} of it ({slowest.where})"
    )
    return Row(Check.matmul, num_nodes, result, bool(problems)), problems


def judge_folder(folders: Sequence[FolderFacts], asked: Expected) -> tuple[Row, list[NodeProblem]]:
    """Tell which nodes do not see the run directory, cannot write it, or have no room."""
    first = folders[0].node
    problems = []
    for one in folders:
        if one.write_error is not None:
            text = observed(
                f"run_dir on {one.node}",
                "a folder that it can write to",
                f"{asked.run_dir}: {one.write_error}",
                f"Mend the mount or the rights there. {leave_out([one.node], asked.is_slurm)}",
            )
            problems.append(NodeProblem(Check.run_dir, (one.node,), text))
        elif not one.is_seen or not one.is_seen_by_first:
            unseen = (
                f"{asked.run_dir} without what {first} wrote there"
                if not one.is_seen
                else f"{asked.run_dir}, where {first} does not see what {one.node} wrote"
            )
            text = observed(
                f"run_dir on {one.node}",
                "one folder that all nodes share",
                unseen,
                f"Mount the shared disk there, or choose a run_dir on one. {leave_out([one.node], asked.is_slurm)}",
            )
            problems.append(NodeProblem(Check.run_dir, (one.node,), text))
    # Who does not share the disk has another's room.
    sharing = [one for one in folders if one.node not in {node for of in problems for node in of.nodes}]
    free = [(one.free_bytes, one.node) for one in sharing if one.free_bytes is not None]
    least, where = min(free, default=(None, first))
    if least is not None and asked.need_bytes is not None and least < asked.need_bytes:
        text = observed(
            f"run_dir on {where}",
            f"a disk with room for {many(asked.num_checkpoints, 'checkpoint')}, {asked.need_bytes / 1e9:.3g} GB",
            f"{asked.run_dir} with {least / 1e9:.3g} GB",
            "Choose a larger disk or lower checkpoint.keep_last.",
        )
        problems.append(NodeProblem(Check.run_dir, (where,), text))
    late = max(one.seen_after_s for one in folders)
    result = f"{asked.run_dir}: visible after {late:.1f} s" if len(folders) > 1 else asked.run_dir
    result += f", {least / 1e9:.3g} GB free" if least is not None else ""
    if asked.need_bytes is not None:
        result += f", {asked.need_bytes / 1e9:.3g} needed for {many(asked.num_checkpoints, 'checkpoint')}"
    elif asked.num_checkpoints:
        result += "; the size of a checkpoint is not forecast"
    return Row(Check.run_dir, len(folders), result, bool(problems)), problems


def judge_clocks(clocks: Sequence[ClockFacts], asked: Expected) -> tuple[Row, list[NodeProblem]]:
    """Compare the clocks with the median of three or more, else with the first node's."""
    base = statistics.median(one.ahead_s for one in clocks) if len(clocks) > 2 else 0.0
    problems = []
    for one in clocks:
        off = one.ahead_s - base
        # What the exchange itself took may have been all on one way.
        if abs(off) - one.round_trip_s / 2 <= asked.max_clock_skew_s:
            continue
        against = "the median of all nodes" if len(clocks) > 2 else clocks[0].node
        text = observed(
            f"clock of {one.node}",
            f"within {asked.max_clock_skew_s:g} s of {against} (cluster.preflight.max_clock_skew_s)",
            f"{abs(off):.1f} s {'ahead' if off > 0 else 'behind'}",
            f"Mend time synchronisation there: chronyc tracking, timedatectl. {leave_out([one.node], asked.is_slurm)}",
        )
        problems.append(NodeProblem(Check.clocks, (one.node,), text))
    widest = max(abs(one.ahead_s - base) for one in clocks)
    slowest = max(one.round_trip_s for one in clocks)
    result = (
        f"within {widest:.3f} s, give or take {slowest / 2 * 1000:.1f} ms" if len(clocks) > 1 else "one node"
    )
    return Row(Check.clocks, len(clocks), result, bool(problems)), problems
