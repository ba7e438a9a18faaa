"""Starting the ranks of a command that a person typed: on this machine, or on the hosts of a hostfile."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from trainer.command.before_ranks import (
    check_benchmarks,
    check_disk,
    check_quantiser,
    check_start_adapter,
    check_stores,
    check_teacher,
    check_whole_export,
)
from trainer.command.finished import find_finished
from trainer.command.fitting import fitted_here
from trainer.command.missing_here import refuse_missing
from trainer.command.prepare import ensure_inputs
from trainer.command.rank import run_rank
from trainer.config.check import check_config, find_problems
from trainer.config.cluster import ClusterConfig, Scheduler
from trainer.config.reference import variables_named
from trainer.config.rule import Problem, problem, said
from trainer.config.schema import RunConfig
from trainer.config.snapshot import (
    config_path,
    dated,
    freeze,
    holds_values,
    refuse_another,
    write_atomic,
)
from trainer.config.store import load_config, to_standard_error, to_yaml
from trainer.dist.hosts import expand_hosts
from trainer.errors import ConfigError, Exit, TrainerError
from trainer.forecast.card import find_cards
from trainer.model.dtype import NO_BF16
from trainer.run.lost import refuse_lost
from trainer.runtime.ended import note_end
from trainer.runtime.job import given_log_dir
from trainer.runtime.lock import LEASE, locked_for_ranks, refuse_in_use
from trainer.runtime.log import attempt_dir, attempt_dirs
from trainer.start.local import only_rank, start_local, why_ended
from trainer.start.ranks import count_ranks, with_hosts
from trainer.start.remote import Hosts, start_hosts


def start_ranks(command: str, config: RunConfig) -> int:
    """Prepare what is missing, freeze the configuration, and start the ranks; return the exit code.

    Raises:
        TrainerError: What can be known to be wrong before ranks start.
    """
    config, hosts, why_not = _placed(command, config)
    if why_not is not None:
        refuse_missing(config, command, more=[why_not])
    if command == "train":
        refuse_in_use(Path(config.run_dir))
        try:  # before hours of preparing; what is open yet is no difference
            refuse_another(config, Path(config.run_dir))
        except ConfigError as error:
            refuse_missing(config, command, more=[said("run_dir", str(error))])
        if config.checkpoint.resume and config.checkpoint.enabled:
            refuse_lost(Path(config.run_dir))
        if (finished := find_finished(config)) is not None:
            print(finished.sentence, flush=True)
            if finished.is_done:
                return Exit.done
    is_sound = not any(find_problems(config))
    # Before torch is loaded, which counts GPUs; a broken rule is told with the ranks that there seem to be.
    refuse_missing(config, command, None if is_sound else _ranks_expected(config.cluster, hosts))
    num_ranks = count_ranks(config.cluster) if hosts is None else hosts.num_ranks
    check_config(config, num_ranks)
    _warn(config)
    config = fitted_here(config, num_ranks, are_ranks_here=hosts is None)
    from trainer.run.packing import with_packing

    config = with_packing(dated(config, Path(config.run_dir)))
    check_config(config, num_ranks)  # what was chosen may break a rule that was not one before
    check_quantiser(config)
    if command == "train":
        check_start_adapter(config)
        check_teacher(config)
    check_benchmarks(config, command)
    if command == "train":
        check_whole_export(config)
    if hosts is not None:
        listed = os.environ.get("SLURM_JOB_NODELIST")
        hosts.check(expand_hosts(listed) if listed else None)
    tokenizer = ensure_inputs(config)
    run_dir = Path(config.run_dir)
    path = config_path(run_dir)
    num_steps = check_stores(config, command, tokenizer)
    if command == "train":
        with locked_for_ranks(run_dir):
            check_disk(config, num_ranks, num_steps or 0)
            return _noted(run_dir, lambda: _train(config, hosts, num_ranks))
    if not path.exists():
        return _launch(command, freeze(config, run_dir), num_ranks, config.cluster.master_port)
    changed = run_dir / f"{command}.yaml"
    write_atomic(changed, to_yaml(config), is_private=holds_values(config))
    return _launch(command, changed, num_ranks, config.cluster.master_port)


def _placed(command: str, config: RunConfig) -> tuple[RunConfig, Hosts | None, Problem | None]:
    """Return the configuration with the nodes of its hostfile, those, and why no ranks can be started from here."""
    hosts: Hosts | None = None
    if command == "train":
        try:
            _refuse_slurm(config)
            cluster, hosts = with_hosts(config.cluster)
        except TrainerError as error:
            return config, None, said("cluster.hostfile", str(error))
        config = dataclasses.replace(config, cluster=cluster)
    if config.cluster.num_nodes <= 1 or hosts is not None or _is_what_is_left(config.cluster):
        return config, hosts, None
    why_not = problem(
        "cluster.num_nodes",
        f"must be 1 for `palimpsest {command}`, but is {config.cluster.num_nodes} instead. Hand a training to SLURM "
        "with `palimpsest submit`, give cluster.hostfile=FILE, or set 1 for this machine alone.",
    )
    return config, None, why_not


def _train(config: RunConfig, hosts: Hosts | None, num_ranks: int) -> int:
    """Train on the hosts, or on this machine; return the exit code."""
    if hosts is not None:
        return _launch_on_hosts(config, hosts)
    return _launch("train", freeze(config, Path(config.run_dir)), num_ranks, config.cluster.master_port)


def _noted(run_dir: Path, train: Callable[[], int]) -> int:
    """Return the exit code of ranks, which is left in the folder of their logs where none of them could, if killed."""
    before = attempt_dirs(run_dir)
    code = train()
    for folder in attempt_dirs(run_dir)[:1]:
        if code != Exit.done and folder not in before:
            note_end(folder, code, why_ended(code) or "")
    return code


def _ranks_expected(cluster: ClusterConfig, hosts: Hosts | None) -> int:
    """Return the ranks of a start, with the GPUs that nvidia-smi tells of."""
    if hosts is not None:
        return hosts.num_ranks
    on_cpu = os.environ.get("DS_ACCELERATOR") == "cpu"
    return cluster.ranks_per_node or (1 if on_cpu else max(find_cards().count, 1))


def _is_what_is_left(cluster: ClusterConfig) -> bool:
    """Tell whether this is the one rank of a batch script's job that has come down to one node.

    Its step has one task, so that it looks like somebody's shell.
    """
    return 1 in cluster.smaller and cluster.ranks_per_node == 1 and given_log_dir(os.environ) is not None


def _refuse_slurm(config: RunConfig) -> None:
    """Raise where a run is meant for SLURM's nodes, and this is a shell outside its jobs."""
    if config.cluster.scheduler is Scheduler.slurm and "SLURM_JOB_ID" not in os.environ:
        raise ConfigError(
            "`cluster.scheduler` must be none for `palimpsest train`, which trains on this machine, but is slurm "
            "instead, outside its jobs. Hand the run in with the same words: palimpsest submit ...; or leave "
            "cluster=slurm out (cluster.scheduler=none)."
        )


def start_generation(config: RunConfig) -> int:
    """Show the store that is there, or start the ranks that sample it; they read a frozen configuration."""
    if config.cluster.num_nodes > 1:
        raise ConfigError(
            "`cluster.num_nodes` must be 1 for `palimpsest replay generate`, but is "
            f"{config.cluster.num_nodes} instead. Start the ranks with: deepspeed --hostfile FILE --module trainer "
            "replay generate ..."
        )
    refuse_missing(config, "replay generate")
    from trainer.command.replay import show_finished

    _warn(config)
    if show_finished(config):
        return Exit.done
    with tempfile.TemporaryDirectory(prefix="palimpsest-") as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(to_yaml(config), encoding="utf-8")
        return _launch("replay generate", path, count_ranks(config.cluster), config.cluster.master_port)


def _warn(config: RunConfig) -> None:
    """Say aloud that weights are random, where they are."""
    if config.model.warning is not None:
        to_standard_error(config.model.warning)


def _launch(command: str, config_file: Path, num_ranks: int, master_port: int) -> int:
    """Run one rank in this process, several through the deepspeed launcher; return the exit code."""
    if num_ranks > 1:
        return start_local([*command.split(), "--config", str(config_file)], num_ranks, master_port)
    with only_rank(master_port):
        return run_rank(command, load_config(config_file, []))


def _launch_on_hosts(config: RunConfig, hosts: Hosts) -> int:
    """Check the hosts and train on them; return the exit code."""
    cluster = config.cluster
    ours = ("DS_ACCELERATOR", NO_BF16, LEASE, "TOKENIZERS_PARALLELISM", "NCCL_", "TORCH_NCCL_")
    variables = {name: value for name, value in os.environ.items() if name.startswith(ours)}
    # What the frozen configuration names, the ranks look up again.
    variables |= {name: os.environ[name] for name in variables_named(config) if name in os.environ}
    variables |= {**cluster.environment, **cluster.nccl}
    frozen = freeze(config, Path(config.run_dir))
    logs = attempt_dir(Path(config.run_dir))
    if cluster.preflight.enabled and len(hosts.names) > 1:
        code = start_hosts("doctor", frozen, hosts, variables, logs)
        if code:
            return code
    return start_hosts("train", frozen, hosts, variables, logs)
