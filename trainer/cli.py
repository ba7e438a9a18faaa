"""The command line: compose -> RunConfig -> check -> the command; errors and stop reasons -> exit codes.

`palimpsest COMMAND overrides...` starts ranks through the deepspeed launcher; a rank process
(`deepspeed --module trainer overrides...`, or with --config FILE) runs in place. Importing this loads no torch.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from trainer.config.check import check_config
from trainer.config.schema import RunConfig
from trainer.config.snapshot import config_path, freeze
from trainer.config.store import compose_config, load_config, to_yaml
from trainer.dist.env import rank_env
from trainer.errors import ConfigError, TrainerError
from trainer.invocation import Invocation, frozen_config, parse, sweep_folder
from trainer.runtime.job import leave_exit_code
from trainer.usage import DETAILS, SUBCOMMANDS, help_text

EXIT_USER_ERROR = 2
EXIT_REFUSED = 3
"""The gate refuses, or the run does not fit and `plan.strict` is set."""
EXIT_CODES = {"finished": 0, "early_stop": 0, "preempted": 75, "non_finite": 4}
"""Exit code by stop reason: 75 (EX_TEMPFAIL) asks for a requeue, 4 means numbers went wrong."""

_RANK_VARIABLES = {"RANK", "OMPI_COMM_WORLD_RANK", "SLURM_STEP_ID"}
"""One of these says that a launcher started this process."""
END_SENTENCES = {
    "early_stop": "Stopped early: the held-out loss has not fallen for evaluate.patience evaluations.",
    "preempted": "Stopped by a signal with a checkpoint in {run_dir}. Start the same command again to go on.",
    "non_finite": (
        "Stopped: loss or gradients were not finite for more than train.max_non_finite_steps steps in a row. "
        "Nothing was saved since; see {run_dir}/ledger.jsonl, lower optim.lr, or look at the data of those steps."
    ),
}


def main() -> None:
    """Run the console command."""
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: Sequence[str]) -> int:
    """Run a command line and return the exit code."""
    _quieten_libraries()
    try:
        if arguments and arguments[0] in DETAILS and "--help" in arguments:
            print(DETAILS[arguments[0]])
            return 0
        if not arguments or arguments[0] in ("-h", "--help", "help") or "--help" in arguments:
            print(help_text())
            return 0
        if len(arguments) == 1 and arguments[0] in SUBCOMMANDS:
            for name, what in SUBCOMMANDS[arguments[0]].items():
                print(f"palimpsest {arguments[0]} {name}: {what}")
            return 0
        return _dispatch(parse(arguments))
    except TrainerError as error:
        return _report(error)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130


def _quieten_libraries() -> None:
    """Tell DeepSpeed which accelerator there is before anything imports it and guesses aloud."""
    if not Path("/dev/nvidiactl").exists():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _dispatch(invocation: Invocation) -> int:
    code = _of_files(invocation)
    if code is not None:
        return code
    config = _load(invocation)
    if invocation.show_config:
        print(to_yaml(config), end="")
        return 0
    match invocation.command:
        case "plan":
            from trainer.planning import show_plan

            return 0 if show_plan(config) or not config.plan.strict else EXIT_REFUSED
        case "submit":
            from trainer.launch.submit import submit

            return int(submit(config, invocation.is_dry))
        case "doctor":
            return _examine(config, invocation.config_file)
        case command if _is_rank():
            return _run_rank(command, config)
        case command:
            return _run_here(command, config)


def _of_files(invocation: Invocation) -> int | None:
    """Run what needs no configuration of one run: status and sweeps; None for all else."""
    if invocation.command == "status":
        from trainer.launch.status import show_status

        return int(show_status(invocation.overrides))
    if invocation.is_multirun:
        return _sweep(invocation)
    sweep = sweep_folder(invocation)
    if sweep is not None:
        from trainer.launch.multirun import show_sweep

        return int(show_sweep(sweep))
    return None


def _sweep(invocation: Invocation) -> int:
    """Train or submit every point of a sweep."""
    if _is_rank():
        raise ConfigError(
            "`-m` must be started alone, but this is a rank of a launcher instead. Start it from a shell: "
            f"palimpsest {invocation.command} -m ..."
        )
    from trainer.launch.multirun import start_sweep

    return int(start_sweep(invocation.command, invocation.overrides, invocation.is_dry))


def _is_rank() -> bool:
    """Tell whether a launcher started this process as one of several."""
    return bool(os.environ.keys() & _RANK_VARIABLES)


def _examine(config: RunConfig, config_file: Path | None) -> int:
    """Check this machine, or all nodes of the job that this process is a rank of."""
    from trainer.doctor import examine_machine, examine_nodes

    is_alone = not _is_rank() or rank_env(os.environ).world_size == 1
    return examine_machine(config) if is_alone else examine_nodes(config, config_file)


def _run_here(command: str, config: RunConfig) -> int:
    """Run a command that a person typed: alone, or by starting ranks."""
    match command:
        case "prepare":
            from trainer.jobs import prepare_data

            prepare_data(config)
            return 0
        case "export":
            return _export(config)
        case "report":
            from trainer.keeper import show_forgetting

            show_forgetting(Path(config.run_dir))
            return 0
        case "replay generate":
            return _start_generation(config)
        case _:
            return _start_ranks(command, config)


def _export(config: RunConfig) -> int:
    """Write a checkpoint, several adapters as one, or what lies between the base and a checkpoint."""
    if config.export.adapters:
        from trainer.combining import combine_adapters

        return combine_adapters(config)
    if config.export.interpolate is not None:
        from trainer.interpolation import interpolate

        return interpolate(config)
    from trainer.exporting import export_model
    from trainer.jobs import find_checkpoint

    if config.gate.has_rules and not config.export.despite_gate:
        from trainer.evaluation import refuse_failing

        refuse_failing(config, find_checkpoint(Path(config.run_dir), config.export.checkpoint).name)
    return export_model(config)


def _load(invocation: Invocation) -> RunConfig:
    """Compose the configuration, or take the frozen one of the run directory for later commands."""
    if invocation.command == "doctor" and invocation.config_file is not None and _is_rank():
        from trainer.doctor import require_file

        require_file(invocation.config_file)
    if invocation.config_file is not None:
        config = load_config(invocation.config_file, invocation.overrides)
    else:
        frozen = frozen_config(invocation)
        config = load_config(frozen, invocation.overrides) if frozen else compose_config(invocation.overrides)
    absolute = str(Path(config.run_dir).expanduser().resolve())
    return dataclasses.replace(config, run_dir=absolute)


def _run_rank(command: str, config: RunConfig) -> int:
    """Run as one rank of a started job."""
    env = rank_env(os.environ)
    if command == "replay generate":
        from trainer.generation import run_generation

        return 0 if run_generation(config) else _say_stopped_generation(env.is_first)
    from trainer import run

    check_config(config, env.world_size)
    config = _fit(config, env.world_size, env.is_first)
    if command in ("train", "evaluate"):
        from trainer.evaluate.tasks import check_names

        check_names(config.evaluate.tasks)
    if command == "evaluate":
        from trainer.evaluation import run_evaluation

        return 0 if run_evaluation(config) else EXIT_REFUSED
    if command != "train":
        raise ConfigError(f"`{command}` must be started alone, not by a launcher. Run: palimpsest {command}")
    if env.is_first:
        freeze(config, Path(config.run_dir))
    reason = run.run_training(config).value
    if env.is_first and reason in END_SENTENCES:
        print(END_SENTENCES[reason].format(run_dir=config.run_dir), file=sys.stderr, flush=True)
    leave_exit_code(os.environ, EXIT_CODES[reason], env.is_first)
    return EXIT_CODES[reason]


def _start_ranks(command: str, config: RunConfig) -> int:
    """Prepare what is missing, freeze the configuration, and start the ranks."""
    from trainer.jobs import (
        check_benchmarks,
        check_draws,
        check_quantiser,
        count_ranks,
        ensure_inputs,
        with_hosts,
    )

    hosts: list[str] = []
    if command == "train":
        config, hosts = with_hosts(config)
    if config.cluster.num_nodes > 1 and not hosts:
        raise ConfigError(
            f"`cluster.num_nodes` must be 1 for `palimpsest {command}`, but is {config.cluster.num_nodes} "
            "instead. Hand a training to SLURM with `palimpsest submit`, give cluster.hostfile=FILE, or set 1 for "
            "this machine alone."
        )
    num_ranks = len(hosts) * config.cluster.ranks_per_node or count_ranks(config)
    check_config(config, num_ranks)
    config = _fit(config, num_ranks)
    check_quantiser(config)
    check_benchmarks(config, command)
    tokenizer = ensure_inputs(config)
    run_dir = Path(config.run_dir)
    path = config_path(run_dir)
    if command == "train":
        check_draws(config, tokenizer)
    if hosts:
        return _launch_on_hosts(config, hosts)
    if command == "train" or not path.exists():
        return _launch(command, freeze(config, run_dir), num_ranks, config.cluster.master_port)
    changed = run_dir / f"{command}.yaml"
    changed.write_text(to_yaml(config), encoding="utf-8")
    return _launch(command, changed, num_ranks, config.cluster.master_port)


def _fit(config: RunConfig, num_ranks: int, says: bool = True) -> RunConfig:
    """Fill in the stage and the recomputed layers where they are null, from the memory of this machine's GPUs."""
    from trainer.fitting import fitted
    from trainer.forecast.card import find_cards

    gpu_gib = config.plan.gpu_gib or config.cluster.gpu_gib
    if gpu_gib is None and os.environ.get("DS_ACCELERATOR") != "cpu":
        gpu_gib = find_cards().gib
    fit = fitted(config, num_ranks, gpu_gib, can_load=True, is_here=True)
    if says and fit.reason is not None:
        print(fit.sentence, flush=True)
    return fit.config


def _launch(command: str, config_file: Path, num_ranks: int, master_port: int) -> int:
    """Run one rank in this process, several through the deepspeed launcher; return the exit code."""
    from trainer.runtime.local import only_rank, start_local

    if num_ranks > 1:
        return start_local([*command.split(), "--config", str(config_file)], num_ranks, master_port)
    with only_rank(master_port):
        return _run_rank(command, load_config(config_file, []))


def _launch_on_hosts(config: RunConfig, hosts: list[str]) -> int:
    """Train on the hosts of a hostfile; return the exit code."""
    from trainer.runtime.remote import start_hosts

    cluster = config.cluster
    ours = ("DS_ACCELERATOR", "TOKENIZERS_PARALLELISM")
    variables = {name: os.environ[name] for name in ours if name in os.environ}
    variables |= {**cluster.environment, **cluster.nccl}
    frozen, hostfile = freeze(config, Path(config.run_dir)), Path(str(cluster.hostfile))
    runner, port = cluster.deepspeed_runner, cluster.master_port
    if cluster.preflight.enabled and len(hosts) > 1:
        code = start_hosts("doctor", frozen, hosts, hostfile, runner, port, variables)
        if code:
            return code
    return start_hosts("train", frozen, hosts, hostfile, runner, port, variables)


def _start_generation(config: RunConfig) -> int:
    """Show the store that is there, or start the ranks that sample it; they read a frozen configuration."""
    from trainer.generation import CHECKED_KEYS, show_finished
    from trainer.jobs import count_ranks

    if config.cluster.num_nodes > 1:
        raise ConfigError(
            "`cluster.num_nodes` must be 1 for `palimpsest replay generate`, but is "
            f"{config.cluster.num_nodes} instead. Start the ranks with: deepspeed --hostfile FILE --module trainer "
            "replay generate ..."
        )
    check_config(config, only=CHECKED_KEYS)
    if show_finished(config):
        return 0
    with tempfile.TemporaryDirectory(prefix="palimpsest-") as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(to_yaml(config), encoding="utf-8")
        return _launch("replay generate", path, count_ranks(config), config.cluster.master_port)


def _say_stopped_generation(is_first: bool) -> int:
    if is_first:
        print("Stopped by a signal. Start the same command again to go on.", file=sys.stderr, flush=True)
    return EXIT_CODES["preempted"]


def _report(error: TrainerError) -> int:
    """Print an error once: other ranks wait for the launcher to end them after rank 0 has spoken."""
    rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
    leave_exit_code(os.environ, EXIT_USER_ERROR, rank == 0)
    if rank > 0:
        time.sleep(5)
    prefix = f"[rank {rank}] " if rank else ""
    print(f"{prefix}Error: {error}", file=sys.stderr, flush=True)
    return EXIT_USER_ERROR
