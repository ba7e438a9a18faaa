"""The checks in order: every process measures, the first judges and decides whether to go on."""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as torch_dist

from trainer.config.preflight import PreflightConfig
from trainer.errors import TopologyError
from trainer.preflight import clock, shared_folder
from trainer.preflight.absence import AWAITS, DONE, absent, judge_hang, judge_missing
from trainer.preflight.bandwidth import measure_between, measure_pairs, measure_within, open_group
from trainer.preflight.facts import (
    BandwidthFacts,
    Check,
    ClockFacts,
    FolderFacts,
    Row,
    rank_facts,
    to_json,
)
from trainer.preflight.findings import Findings
from trainer.preflight.floor import Floors, between_by_node, floors_of, judge_between, judge_within
from trainer.preflight.inventory import device_of, node_facts, take_facts
from trainer.preflight.meeting import Meeting
from trainer.preflight.verdict import (
    Expected,
    judge_clocks,
    judge_folder,
    judge_gpus,
    judge_matmul,
    judge_versions,
)

MARGIN_S = 5.0
"""Kept for telling the verdict."""
GOODBYE_S = 2.0
CONNECT_S = 20.0
"""For one step of an all-reduce on CPUs, the first connection included."""
PATIENCE_S = 2.0
"""A launcher ends all processes when one ends with a code: the first must have spoken before."""
_GO, _STOP = "go", "stop"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to check."""

    asked: Expected
    limits: PreflightConfig
    expected: Mapping[str, int] | None
    """Processes by node; None where nobody says which nodes there are."""
    hosts: Sequence[str]
    """Names by rank from a hostfile, which may not be what the hosts call themselves; empty without one."""
    started: Path | None
    """Folder in which every node leaves its name when its Python begins."""
    folder: Path
    """The run directory, or the nearest folder above that is there."""
    config_digest: str


def examine(meeting: Meeting, plan: Plan, findings: Findings) -> bool:
    """Run all checks and tell whether all nodes passed.

    Ranks:
        Every process; `findings` are filled on the first one.

    Raises:
        TopologyError: The first process went away.
    """
    nodes = _meet(meeting, plan, findings)
    if nodes and _take_facts(meeting, plan, findings, nodes):
        firsts = [nodes.index(node) for node in dict.fromkeys(nodes)]
        if _try_folder(meeting, plan, findings, firsts, nodes) and _compare_clocks(
            meeting, plan, findings, firsts, nodes
        ):
            _time_all_reduce(meeting, plan, findings, nodes)
    return _conclude(meeting, findings)


def _meet(meeting: Meeting, plan: Plan, findings: Findings) -> list[str]:
    """Return the node of every rank; none when a process is missing."""
    env = meeting.env
    meeting.enter(Check.rendezvous.value)
    meeting.tell(f"in/{env.rank}", meeting.node)
    if not env.is_first:
        meeting.enter(AWAITS)
        return list(json.loads(meeting.hear("nodes", meeting.left_s())))
    start = time.monotonic()
    wait_s = min(plan.limits.rendezvous_s, meeting.left_s(MARGIN_S))
    present = meeting.collect("in", range(env.world_size), wait_s)
    took = time.monotonic() - start
    result = f"{len(present)} of {env.world_size} process(es) at {meeting.address} after {took:.1f} s"
    findings.add(Row(Check.rendezvous, len(set(present.values())), result))
    if len(present) < env.world_size:
        began = [path.name for path in plan.started.iterdir()] if plan.started else []
        expected = absent(present, env.world_size, plan.expected, plan.hosts)
        findings.problems += judge_missing(expected, began, meeting.address, wait_s, plan.asked.is_slurm)
    nodes = [present[rank] for rank in sorted(present)] if len(present) == env.world_size else []
    meeting.tell("nodes", json.dumps(nodes))
    return nodes


def _take_facts(meeting: Meeting, plan: Plan, findings: Findings, nodes: list[str]) -> bool:
    """Compare versions, and every process's device."""
    env = meeting.env
    findings.at = Check.versions
    meeting.enter(Check.versions.value)
    of_node = node_facts(plan.config_digest) if nodes.index(meeting.node) == env.rank else None
    findings.at = Check.matmul
    meeting.enter(Check.matmul.value)
    mine = take_facts(env.rank, env.local_rank, meeting.node, of_node)
    meeting.tell(f"facts/{env.rank}", to_json(mine))
    if not env.is_first:
        return _hear(meeting, "facts")
    got = meeting.collect("facts", range(env.world_size), meeting.left_s(2 * MARGIN_S))
    facts = [rank_facts(got[rank]) for rank in sorted(got)]
    meeting.tell("device", "cuda" if all(one.on_gpu for one in facts) else "cpu")
    findings.add(*judge_versions(facts))
    findings.add(*judge_gpus(facts, plan.asked))
    findings.add(*judge_matmul(facts, plan.asked))
    return _decide(meeting, "facts", plan, findings, dict(enumerate(nodes)), got)


def _try_folder(
    meeting: Meeting, plan: Plan, findings: Findings, firsts: Sequence[int], nodes: Sequence[str]
) -> bool:
    """Let the first node write for all others, and these for the first node."""
    rank, where = meeting.env.rank, plan.folder
    if rank not in firsts:
        return _hear(meeting, "folder")
    findings.at = Check.run_dir
    waited: float | None = 0.0
    if meeting.env.is_first:
        meeting.enter(Check.run_dir.value)
        nonce = uuid.uuid4().hex
        error = shared_folder.write_probe(where, nonce, meeting.node)
        meeting.tell("folder/nonce", json.dumps([nonce, error is None, meeting.node]))
    else:
        meeting.enter(AWAITS)
        nonce, is_written, first = json.loads(meeting.hear("folder/nonce", meeting.left_s()))
        meeting.enter(Check.run_dir.value)
        if is_written:
            waited = shared_folder.wait_for_probe(where, nonce, first, plan.limits.visible_s)
        error = shared_folder.write_probe(where, nonce, meeting.node)
    free = shared_folder.free_bytes(where)
    mine = FolderFacts(meeting.node, waited is not None, waited or 0.0, error, free)
    meeting.tell(f"folder/{rank}", to_json(mine))
    if meeting.env.is_first:
        got = meeting.collect("folder", firsts, meeting.left_s(MARGIN_S))
        found = [FolderFacts(**json.loads(got[one])) for one in sorted(got)]
        seen = [_seen_by_first(one, where, nonce, plan.limits.visible_s) for one in found]
        findings.add(*judge_folder(seen, plan.asked))
        go_on = _decide(meeting, "folder", plan, findings, {one: nodes[one] for one in firsts}, got)
    else:
        go_on = _hear(meeting, "folder")
    shared_folder.remove_probe(where, nonce, meeting.node)
    return go_on


def _seen_by_first(one: FolderFacts, where: Path, nonce: str, wait_s: float) -> FolderFacts:
    """Look, on the first node, for what another wrote."""
    if one.write_error is not None or not one.is_seen:
        return one
    waited = shared_folder.wait_for_probe(where, nonce, one.node, wait_s)
    return FolderFacts(
        one.node, True, max(one.seen_after_s, waited or 0.0), None, one.free_bytes, waited is not None
    )


def _compare_clocks(
    meeting: Meeting, plan: Plan, findings: Findings, firsts: Sequence[int], nodes: Sequence[str]
) -> bool:
    """Measure every node's clock against the first node's."""
    rank = meeting.env.rank
    findings.at = Check.clocks
    if rank not in firsts:
        return _hear(meeting, "clocks")
    meeting.enter(Check.clocks.value)
    if not meeting.env.is_first:
        mine = clock.ask(meeting, meeting.left_s(MARGIN_S))
        meeting.tell(f"clocks/{rank}", to_json(mine))
        return _hear(meeting, "clocks")
    for other in firsts[1:]:
        try:
            clock.answer(meeting, other, min(5.0, meeting.left_s(MARGIN_S)))
        except TopologyError:
            # Who does not ask is missing below.
            continue
    meeting.tell(f"clocks/{rank}", to_json(ClockFacts(meeting.node, 0.0, 0.0)))
    got = meeting.collect("clocks", firsts, min(5.0, meeting.left_s(MARGIN_S)))
    clocks = [ClockFacts(**json.loads(got[one])) for one in sorted(got)]
    findings.add(*judge_clocks(clocks, plan.asked))
    # Different NCCLs or a sick GPU would hang in an all-reduce.
    blockers = (Check.versions, Check.gpus)
    return _decide(meeting, "clocks", plan, findings, {one: nodes[one] for one in firsts}, got, blockers)


def _time_all_reduce(meeting: Meeting, plan: Plan, findings: Findings, nodes: list[str]) -> None:
    """Measure bandwidths; in pairs of nodes as well where a floor is missed."""
    env = meeting.env
    if env.world_size == 1:
        findings.add(*judge_within([], None))
        findings.add(*judge_between([], None))
        return
    on_gpu = meeting.hear("device", meeting.left_s()) == "cuda"
    device = device_of(env.local_rank) if on_gpu else torch.device("cpu")
    mine = _rates(meeting, findings, nodes, device)
    meeting.tell(f"rates/{env.rank}", to_json(mine))
    meeting.enter(AWAITS)
    if env.is_first:
        got = meeting.collect("rates", range(env.world_size), meeting.left_s(MARGIN_S))
        facts = [BandwidthFacts(**json.loads(got[rank])) for rank in sorted(got)]
        limits = plan.limits
        floors = floors_of(limits.min_intra_node_gb_per_s, limits.min_inter_node_gb_per_s, on_gpu)
        if all(one.error is None for one in facts) and len(facts) == env.world_size:
            facts = _in_pairs(meeting, nodes, device, facts, floors)
        meeting.tell("pairs", _STOP)
        findings.add(*judge_within(facts, floors.within))
        findings.add(*judge_between(facts, floors.between))
        _decide(meeting, "rates", plan, findings, dict(enumerate(nodes)), got)
    elif meeting.hear("pairs", meeting.left_s()) == _GO:
        meeting.tell(f"pairs/{env.rank}", json.dumps(_pair_rates(meeting, nodes, device)))
    if mine.error is None:
        torch_dist.destroy_process_group()


def _rates(meeting: Meeting, findings: Findings, nodes: list[str], device: torch.device) -> BandwidthFacts:
    """Return what this process measures with others, or why it cannot."""
    env = meeting.env
    try:
        findings.at = Check.within
        meeting.enter(Check.within.value)
        open_group(env, meeting.room("group"), device, min(CONNECT_S, meeting.left_s(2 * MARGIN_S)))
        within = measure_within(env, nodes, device)
        findings.at = Check.between
        meeting.enter(Check.between.value)
        between = measure_between(env, nodes, device)
    except RuntimeError as error:
        return BandwidthFacts(env.rank, meeting.node, error=str(error).strip().splitlines()[0][:300])
    return BandwidthFacts(env.rank, meeting.node, within, between)


def _in_pairs(
    meeting: Meeting, nodes: list[str], device: torch.device, facts: list[BandwidthFacts], floors: Floors
) -> list[BandwidthFacts]:
    """Measure two nodes at a time where all together miss the floor and there are more than two; first process."""
    slowest = min(between_by_node(facts).values(), default=None)
    if floors.between is None or slowest is None or slowest >= floors.between or len(set(nodes)) < 3:
        return facts
    meeting.tell("pairs", _GO)
    meeting.tell(f"pairs/{meeting.env.rank}", json.dumps(_pair_rates(meeting, nodes, device)))
    got = meeting.collect("pairs", range(len(nodes)), meeting.left_s(MARGIN_S))
    return [
        dataclasses.replace(one, pairs=json.loads(got[one.rank])) if one.rank in got else one for one in facts
    ]


def _pair_rates(meeting: Meeting, nodes: list[str], device: torch.device) -> dict[str, float]:
    try:
        return measure_pairs(meeting.env, nodes, device)
    except RuntimeError:
        # That the floor is missed is known without them.
        return {}


def _decide(
    meeting: Meeting,
    name: str,
    plan: Plan,
    findings: Findings,
    nodes: Mapping[int, str],
    got: Mapping[int, str],
    blockers: Sequence[Check] = (),
) -> bool:
    """Tell all whether to go on: not without the processes that did not answer, nor with some problems."""
    missing = {rank: node for rank, node in nodes.items() if rank not in got}
    if missing:
        slurm = plan.asked.is_slurm
        findings.problems += judge_hang(meeting.phases(), missing, plan.limits.timeout_s, slurm)
    go_on = not missing and not any(one.check in blockers for one in findings.problems)
    meeting.tell(f"decided/{name}", _GO if go_on else _STOP)
    return go_on


def _hear(meeting: Meeting, name: str) -> bool:
    """Return what the first process decided."""
    meeting.enter(AWAITS)
    return meeting.hear(f"decided/{name}", meeting.left_s()) == _GO


def _conclude(meeting: Meeting, findings: Findings) -> bool:
    """Tell the verdict; the first process, in which the store lives, stays until the others have heard it."""
    env = meeting.env
    findings.is_final = True
    meeting.enter(DONE)
    if env.is_first:
        meeting.tell("verdict", _STOP if findings.has_failed else _GO)
        came = [rank for rank in meeting.phases() if rank != 0]
        meeting.collect("heard", came, GOODBYE_S)
        return not findings.has_failed
    passed = meeting.hear("verdict", meeting.left_s()) == _GO
    meeting.tell(f"heard/{env.rank}", "")
    if not passed:
        time.sleep(PATIENCE_S)
    return passed
