"""`palimpsest doctor`: this machine alone, or as one of the processes of a check of all nodes.

Brings the configuration, the forecast of a checkpoint's size and the checks of trainer/preflight together.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]
from rich.console import Console
from rich.table import Table

from trainer.checkpoint.space import demand
from trainer.command.plan import forecast_without_torch
from trainer.command.rules import broken_rules
from trainer.config.check import refuse
from trainer.config.cluster import ClusterConfig, Scheduler
from trainer.config.rule import observed
from trainer.config.schema import RunConfig
from trainer.config.snapshot import config_digest, installed
from trainer.config.store import to_yaml
from trainer.dist.env import RankEnv, expected_nodes, node_name, rank_env
from trainer.dist.hosts import parse_hostfile
from trainer.dist.rendezvous import check_rendezvous
from trainer.errors import ConfigError, Exit, TrainerError
from trainer.preflight.alarm import ended_after
from trainer.preflight.findings import Findings, print_table, show, write_record
from trainer.preflight.machine import describe_machine
from trainer.preflight.shared_folder import nearest
from trainer.preflight.verdict import Expected, leave_out
from trainer.runtime.job import given_log_dir, leave_exit_code
from trainer.start.accelerator import accelerator_problems
from trainer.start.local import start_plain

NODES = "nodes"
"""Folder of an attempt's logs in which every node leaves its name; the job script reads it as well."""


def examine_machine(config: RunConfig) -> int:
    """Tell what this machine has, then check it; return the exit code."""
    refuse([*broken_rules(config, "doctor"), *accelerator_problems(os.environ)])
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for name, what in describe_machine(Path(config.run_dir), Path(config.data.cache_dir)):
        table.add_row(name, what)
    console = Console()
    print_table(console, table)
    if config.cluster.num_nodes > 1 and not _is_in_slurm():
        console.print(
            "This is one machine; a job on several nodes checks all of them before its ranks start."
        )
    if installed("torch") is None:
        return Exit.done
    print(flush=True)
    num_ranks = _ranks_here(config.cluster)
    if num_ranks == 1:
        return examine_nodes(config, None)
    with tempfile.TemporaryDirectory(prefix="palimpsest-") as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(to_yaml(config), encoding="utf-8")
        return start_plain(["doctor", "--config", str(path)], num_ranks, config.cluster.master_port)


def require_file(config_file: Path) -> None:
    """Raise where this node does not see the frozen configuration, and so not the run directory.

    Raises:
        ConfigError: Names the node.
    """
    if not config_file.exists():
        node = node_name(os.environ)
        raise ConfigError(
            observed(
                f"run_dir on {node}",
                "the folder that all nodes share",
                f"{config_file.parent} without {config_file.name}",
                f"Mount the shared disk there, or choose a run_dir on one. {leave_out([node], _is_in_slurm())}",
            )
        )


def _is_in_slurm() -> bool:
    return "SLURM_JOB_ID" in os.environ


def examine_nodes(config: RunConfig, config_file: Path | None) -> int:
    """Check all nodes as one of their processes, or this machine alone; return the exit code.

    Ranks:
        Every process of the job; the first one prints.
    """
    refuse(broken_rules(config, "doctor"))
    env, node = rank_env(os.environ), node_name(os.environ)
    log_dir = given_log_dir(os.environ)
    if log_dir is not None:
        with contextlib.suppress(OSError):
            (log_dir / NODES).mkdir(exist_ok=True)
            (log_dir / NODES / node).touch()
    began = psutil.Process().create_time()
    findings = Findings()
    limits = config.cluster.preflight

    def conclude() -> int:
        seconds = time.time() - began
        if env.is_first:
            show(findings, seconds)
            if log_dir is not None:
                write_record(log_dir, findings, seconds)
        if findings.has_failed:
            leave_exit_code(os.environ, Exit.mendable, env.is_first)
        return Exit.mendable if findings.has_failed else Exit.done

    def last_words() -> None:
        from trainer.preflight.absence import judge_stuck
        from trainer.preflight.meeting import look_in

        leave_exit_code(os.environ, Exit.mendable, env.is_first)
        phases = {} if findings.is_final else look_in(env)
        # One that cannot ask where the others stand may only be waiting for them: it does not name itself.
        if not findings.is_final and (phases or env.is_first):
            expected = expected_nodes(os.environ, env.world_size)
            findings.problems += judge_stuck(phases, expected, node, findings.at, limits.timeout_s)
        conclude()
        if not env.is_first:
            for problem in findings.problems:
                print(f"[rank {env.rank}] Error: {problem.sentence}", file=sys.stderr)

    # A clock that was set meanwhile must not take, or give, all of it.
    left_s = limits.timeout_s - min(max(time.time() - began, 0.0), limits.timeout_s / 2)
    with ended_after(left_s, last_words, Exit.mendable):
        return _examine(config, config_file, env, node, findings, time.monotonic() + left_s) or conclude()


def _examine(
    config: RunConfig,
    config_file: Path | None,
    env: RankEnv,
    node: str,
    findings: Findings,
    deadline: float,
) -> int:
    """Meet the others and run the checks; return the exit code of those who do not know why."""
    check_rendezvous(env, os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True")
    from trainer.preflight.examine import Plan, examine
    from trainer.preflight.meeting import open_meeting

    log_dir = given_log_dir(os.environ)
    plan = Plan(
        asked=_asked(config, env),
        limits=config.cluster.preflight,
        expected=expected_nodes(os.environ, env.world_size),
        hosts=_hosts(config.cluster),
        started=log_dir / NODES if log_dir is not None and (log_dir / NODES).is_dir() else None,
        folder=nearest(Path(config.run_dir)),
        config_digest=_digest(config, config_file),
    )
    meeting = open_meeting(env, node, config.cluster.preflight.rendezvous_s, deadline)
    return Exit.done if examine(meeting, plan, findings) or env.is_first else Exit.mendable


def _hosts(cluster: ClusterConfig) -> list[str]:
    """Return the host of every rank from the hostfile; none where there is no such file here."""
    if cluster.hostfile is None:
        return []
    path = Path(cluster.hostfile).expanduser()
    with contextlib.suppress(OSError, UnicodeDecodeError, TrainerError):
        hosts = parse_hostfile(path.read_text(encoding="utf-8"), str(path))
        return [host for host, num in hosts.items() for _ in range(num)]
    return []


def _digest(config: RunConfig, config_file: Path | None) -> str:
    """Return the digest of the frozen file, as this node reads it, or of what was composed."""
    if config_file is None:
        return config_digest(config)
    return hashlib.sha256(config_file.read_bytes()).hexdigest()


def _asked(config: RunConfig, env: RankEnv) -> Expected:
    """Return what the nodes are measured against."""
    cluster, limits = config.cluster, config.cluster.preflight
    is_slurm = _is_in_slurm()
    num_gpus = cluster.gpus_per_node
    if cluster.scheduler is Scheduler.slurm:
        # On a login node nobody asked for the GPUs of the others.
        num_gpus = cluster.num_gpus_asked if is_slurm else 0
    every, num_steps = config.evaluate.every_steps, config.train.max_steps
    num_new = demand(Path(config.run_dir), config.checkpoint, every, num_steps=num_steps).num
    size = _checkpoint_bytes(config, env.world_size) if env.is_first else None
    return Expected(
        num_gpus=num_gpus,
        ranks_per_node=max(cluster.ranks_per_node, 1),
        max_ecc_errors=limits.max_ecc_errors,
        min_matmul_share=limits.min_matmul_share,
        max_clock_skew_s=limits.max_clock_skew_s,
        need_bytes=None if size is None else size * num_new,
        num_checkpoints=num_new if config.checkpoint.enabled else 0,
        run_dir=config.run_dir,
        is_slurm=is_slurm,
    )


def _checkpoint_bytes(config: RunConfig, num_ranks: int) -> int | None:
    """Return the forecast size of one checkpoint; None where none is made, or where it takes torch to count."""
    if not config.checkpoint.enabled:
        return None
    # Whatever else is wrong with the configuration is training's to say.
    with contextlib.suppress(TrainerError):
        forecast = forecast_without_torch(config, num_ranks)
        return None if forecast is None else forecast.checkpoint_bytes
    return None


def _ranks_here(cluster: ClusterConfig) -> int:
    """Return the processes that check this machine: one a GPU, or as many as a person asked for."""
    from trainer.preflight.inventory import num_visible_gpus

    num_gpus = num_visible_gpus()
    if cluster.scheduler is Scheduler.slurm and not num_gpus:
        return 1
    return cluster.ranks_per_node or max(num_gpus, 1)
