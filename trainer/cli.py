"""The command line: compose -> RunConfig -> check -> the command; errors and stop reasons -> exit codes.

`palimpsest COMMAND overrides...` starts ranks through the deepspeed launcher; a rank process
(`deepspeed --module trainer overrides...`, or with --config FILE) runs in place. Importing this loads no torch.
"""

from __future__ import annotations

import io
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from trainer import __version__
from trainer.command.invocation import Invocation, frozen_config, parse, sweep_folder
from trainer.command.usage import ABOUT, SUBCOMMANDS, WHOLE_ALONE, help_text
from trainer.config.record import WORDS
from trainer.config.schema import RunConfig
from trainer.dist.env import is_rank, rank_env, rank_shown
from trainer.errors import ConfigError, Exit, RankLost, TrainerError
from trainer.metrics.redact import REMOVED, redact
from trainer.runtime.disk import disk_explained
from trainer.runtime.job import leave_exit_code, take_over
from trainer.runtime.libraries import libraries_held
from trainer.runtime.log import setup_messages
from trainer.runtime.visible import visible

HELP = ("-h", "--help")


def main() -> None:
    """Run the console command."""
    for stream in (sys.stdout, sys.stderr):
        # Samples and tables hold characters that a Latin-1 terminal has not: they are replaced.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    # Ends a process that does not listen. The loop does; until then whoever asks for a save has to ask again.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # `python -m trainer`, as launchers start ranks, would take a trainer.py of the working directory for this package.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    take_over(os.environ)
    os.environ.setdefault(WORDS, _words_shown(sys.argv[1:]))
    try:
        code = run_command(sys.argv[1:])
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done and said: what is left is to end
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough; what is still to be written goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    sys.exit(code)


def _words_shown(arguments: Sequence[str]) -> str:
    """Return the words of a command line as they are written down: without values of variables, and what is secret."""
    words = [
        f"{word.partition('=')[0]}={REMOVED}"
        if word.lstrip("+").startswith("cluster.environment") and "${oc.env:" not in word
        else word
        for word in arguments
    ]
    return str(redact({"words": shlex.join(words)})["words"])


def run_command(arguments: Sequence[str]) -> int:
    """Run a command line and return the exit code."""
    _quieten_libraries()
    with libraries_held():
        setup_messages(rank_shown(os.environ))
        return _answer(arguments)


def _answer(arguments: Sequence[str]) -> int:
    """Run a command line, and say in a sentence why it could not be; return the exit code."""
    try:
        text = _told(arguments)
        if text is not None:
            print(text)
            return Exit.done
        with disk_explained(None):
            return _dispatch(parse(arguments))
    except TrainerError as error:
        return _report(error)
    except RankLost as error:  # where it broke stands in the log of the rank
        print(f"Error: {visible(str(error))}", file=sys.stderr, flush=True)
        return Exit.died
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return Exit.interrupted


def _told(arguments: Sequence[str]) -> str | None:
    """Return what a command line asks to be told, of the configuration or of a command; None where it runs one."""
    words = list(arguments)
    if words == ["--version"]:
        return f"palimpsest {__version__}"
    asks = [word for word in words if word in HELP]
    if not words or asks or words[0] == "help":
        from trainer.command.help_page import command_help
        from trainer.command.topics import TOPICS

        topic = _topic([word for word in words if word not in (*HELP, "--all", "help")])
        return command_help(topic, "--all" in words) if topic in TOPICS else help_text()
    if len(words) == 1 and words[0] in SUBCOMMANDS and words[0] not in WHOLE_ALONE:
        return "\n".join(
            f"palimpsest {words[0]} {name}: {what}" for name, what in SUBCOMMANDS[words[0]].items()
        )
    return _about(words[0], words[1:]) if words[0] in ABOUT else None


def _topic(words: Sequence[str]) -> str:
    """Return the command, of one or two words, that help is asked of."""
    if not words or words[0] not in SUBCOMMANDS:
        return words[0] if words else ""
    known = SUBCOMMANDS[words[0]]
    if words[0] in WHOLE_ALONE and not (words[1:] and words[1] in known):
        return words[0]
    return f"{words[0]} {words[1] if words[1:] and words[1] in known else next(iter(known))}"


def _about(command: str, words: Sequence[str]) -> str:
    """Return the answer of a command that runs nothing."""
    match command:
        case "explain":
            from trainer.command.explain import explain

            return explain(words)
        case "schema":
            from trainer.command.schema import schema_text

            return schema_text(words)
        case "completion":
            from trainer.command.completion import completion

            return completion(words)
        case _:
            from trainer.command.init import read_words, write_experiment

            wish = read_words(words)
            lines = write_experiment(wish) if wish.model else []
            if wish.is_site:
                from trainer.launch.site import write_site

                lines += write_site(wish.folder, wish.name)
            return "\n".join(lines)


def _quieten_libraries() -> None:
    """Tell DeepSpeed which accelerator there is before anything imports it and guesses aloud."""
    if not Path("/dev/nvidiactl").exists():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _dispatch(invocation: Invocation) -> int:
    code = _of_files(invocation)
    if code is not None:
        return code
    from trainer.config.floors import check_floors

    check_floors()
    config = _load(invocation)
    if invocation.show_config:
        from trainer.config.store import to_yaml

        print(to_yaml(config), end="")
        if invocation.is_dry and invocation.command == "train":
            from trainer.command.dry_hosts import lines_of_hosts

            print("".join(f"{line}\n" for line in lines_of_hosts(config)), end="")
        return Exit.done
    match invocation.command:
        case "plan":
            from trainer.command.plan import show_plan

            return Exit.done if show_plan(config) or not config.plan.strict else Exit.refused
        case "plan data":
            from trainer.command.plan_data import show_data_plan

            show_data_plan(config)
            return Exit.done
        case "submit":
            from trainer.launch.submit import submit

            return int(submit(config, invocation.is_dry))
        case "doctor":
            return _examine(config, invocation.config_file)
        case "verify":
            from trainer.command.verify import verify_run

            return verify_run(config)
        case "report":
            return _report_run(config, invocation.overrides)
        case command if is_rank(os.environ):
            from trainer.command.rank import run_rank

            return run_rank(command, config)
        case command:
            return _run_here(command, config)


def _of_files(invocation: Invocation) -> int | None:
    """Run what needs no configuration of one run, or makes its own: status, quickstart, sweeps; None for all else."""
    if invocation.command == "status":
        from trainer.launch.status import show_status

        return int(show_status(invocation.overrides))
    if invocation.command == "data review":
        from trainer.command.review import review

        return int(review(invocation.overrides))
    if invocation.command == "quickstart":
        return _quickstart(invocation)
    if invocation.is_multirun:
        return _sweep(invocation)
    sweep = sweep_folder(invocation)
    if sweep is not None:
        from trainer.launch.multirun import show_sweep

        return int(show_sweep(sweep))
    return None


def _quickstart(invocation: Invocation) -> int:
    """Train and export the small model, part by part."""
    if invocation.config_file is not None:
        raise ConfigError(
            "`quickstart` must be given words to compose, but --config names a frozen configuration instead. Leave "
            "it out, or go on with that run: palimpsest train --config FILE"
        )
    from trainer.launch.quickstart import start_quickstart

    return int(start_quickstart(invocation.overrides, invocation.show_config))


def _sweep(invocation: Invocation) -> int:
    """Train or submit every point of a sweep."""
    if is_rank(os.environ):
        raise ConfigError(
            "`-m` must be started alone, but this is a rank of a launcher instead. Start it from a shell: "
            f"palimpsest {invocation.command} -m ..."
        )
    from trainer.launch.multirun import start_sweep

    return int(start_sweep(invocation.command, invocation.overrides, invocation.is_dry))


def _report_run(config: RunConfig, overrides: Sequence[str]) -> int:
    """Write report.html; tell trackers that the command line names what they do not have."""
    from trainer.report.announce import announce

    names_trackers = any(word.startswith("log.trackers=") for word in overrides)
    if names_trackers:
        from trainer.command.before_ranks import check_logins
        from trainer.config.check import check_config

        check_config(config, only=("log",))
        check_logins(config)
    if "evaluate.layer_drift=true" in overrides:
        from trainer.run.layers import take_layer_drift

        take_layer_drift(config)
    announce(Path(config.run_dir))
    if names_trackers:
        from trainer.run.conclusion import tell_trackers

        tell_trackers(config)
    return Exit.done


def _examine(config: RunConfig, config_file: Path | None) -> int:
    """Check this machine, or all nodes of the job that this process is a rank of."""
    from trainer.command.doctor import examine_machine, examine_nodes

    is_alone = not is_rank(os.environ) or rank_env(os.environ).world_size == 1
    return examine_machine(config) if is_alone else examine_nodes(config, config_file)


def _run_here(command: str, config: RunConfig) -> int:
    """Run a command that a person typed: alone, or by starting ranks."""
    match command:
        case "prepare":
            from trainer.command.missing_here import refuse_missing
            from trainer.command.prepare import prepare_data

            refuse_missing(config, command)
            prepare_data(config)
            return Exit.done
        case "export":
            from trainer.command.missing_here import refuse_missing

            refuse_missing(config, command)
            from trainer.command.export import export

            return export(config)
        case "evaluate" if config.evaluate.scores.file is not None:
            from trainer.command.score_file import score_file

            return score_file(config)
        case _ if command.startswith("data "):
            from trainer.command.data_verbs import make_rows

            return make_rows(command, config)
        case "replay generate":
            from trainer.command.train import start_generation

            return start_generation(config)
        case _:
            from trainer.command.train import start_ranks

            return start_ranks(command, config)


def _load(invocation: Invocation) -> RunConfig:
    """Compose the configuration, or take the frozen one of the run directory for later commands."""
    if invocation.command == "doctor" and invocation.config_file is not None and is_rank(os.environ):
        from trainer.command.doctor import require_file

        require_file(invocation.config_file)
    from trainer.command.missing_here import with_other_problems
    from trainer.config.store import compose_config, load_config, say_too_late
    from trainer.config.together import WrongWords

    frozen = invocation.config_file or frozen_config(invocation)
    try:
        if frozen is not None:
            config = load_config(frozen, invocation.overrides)
            if invocation.command in ("evaluate", "export", "report"):
                say_too_late(frozen, invocation.overrides, invocation.command)
            return config
        return compose_config(invocation.overrides)
    except WrongWords as error:
        raise (error if invocation.show_config else with_other_problems(error, invocation.command)) from None


def _report(error: TrainerError) -> int:
    """Print an error once: other ranks wait for the launcher to end them after rank 0 has spoken."""
    rank = rank_shown(os.environ)
    leave_exit_code(os.environ, Exit.mendable, rank == 0)
    if rank > 0:
        time.sleep(5)
    prefix = f"[rank {rank}] " if rank else ""
    print(f"{prefix}Error: {visible(str(error))}", file=sys.stderr, flush=True)
    return Exit.mendable
