"""One rank of a started job: the command in place, and what its end means to whoever started it."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from trainer.command.before_ranks import check_logins, check_whole_export
from trainer.command.fitting import fitted_here
from trainer.config.check import check_config
from trainer.config.check_sharing import holds_pairs
from trainer.config.data import PackingMode
from trainer.config.schema import RunConfig
from trainer.config.snapshot import dated, freeze
from trainer.dist.env import rank_env
from trainer.dist.warden import start_warden
from trainer.errors import ConfigError, Exit
from trainer.runtime.ended import end_noted, note_end
from trainer.runtime.job import leave_exit_code
from trainer.runtime.lock import run_lock
from trainer.runtime.log import log_dir
from trainer.start.accelerator import refuse_accelerator

EXITS = {
    "finished": Exit.done,
    "early_stop": Exit.done,
    "preempted": Exit.preempted,
    "non_finite": Exit.non_finite,
}
"""By stop reason of the loop."""
END_SENTENCES = {
    "early_stop": "Stopped early: the held-out loss has not fallen for evaluate.patience evaluations.",
    "preempted": "Stopped by a signal. {newest} Start the same command again to go on.",
    "non_finite": (
        "Stopped: loss, gradients or weights were not finite, for more than train.max_non_finite_steps steps in a row "
        "or where a checkpoint was due. Nothing was saved since. {newest} See {run_dir}/ledger.jsonl, lower optim.lr, "
        "or look at the data of those steps."
    ),
}


def run_rank(command: str, config: RunConfig) -> int:
    """Run as one rank of a started job; return the exit code.

    Raises:
        TrainerError: The configuration breaks a rule, or the command fails.
    """
    env = rank_env(os.environ)
    refuse_accelerator(os.environ)
    if env.world_size > 1 or not os.isatty(0):  # a person may stop a run of one process and go on with it
        start_warden(env.rank, os.environ)
    if command == "replay generate":
        from trainer.command.replay import run_generation

        return Exit.done if run_generation(config) else _say_stopped_generation(env.is_first)
    check_config(config, env.world_size)
    config = dated(fitted_here(config, env.world_size, env.is_first), Path(config.run_dir))
    is_open = config.data.share_prompts is None and holds_pairs(config.data)
    if config.data.packing is PackingMode.auto or is_open:
        from trainer.run.packing import with_packing

        config = with_packing(config, env.is_first)
    if command in ("train", "evaluate"):
        from trainer.evaluate.tasks.harness import NAMES_DURING, check_names

        check_names(config.evaluate.tasks)
        if command == "train":
            check_names(config.evaluate.tasks_during, NAMES_DURING)
    if command == "evaluate":
        from trainer.command.evaluate import run_evaluation

        return Exit.done if run_evaluation(config) else Exit.refused
    if command != "train":
        raise ConfigError(f"`{command}` must be started alone, not by a launcher. Run: palimpsest {command}")
    check_logins(config)
    check_whole_export(config)
    from trainer.run.training import run_training

    with contextlib.ExitStack() as stack:
        if env.is_first:
            stack.enter_context(run_lock(Path(config.run_dir)))
            freeze(config, Path(config.run_dir))
        stack.enter_context(end_noted(Path(config.run_dir), env.is_first))
        reason = run_training(config).value
        if env.is_first and reason in END_SENTENCES:
            _say_end(config, reason)
    leave_exit_code(os.environ, EXITS[reason], env.is_first)
    return EXITS[reason]


def _say_end(config: RunConfig, reason: str) -> None:
    """Say, and leave in the attempt's folder, why a run ended before its last step."""
    newest = newest_in_words(Path(config.run_dir))
    sentence = END_SENTENCES[reason].format(run_dir=config.run_dir, newest=newest)
    print(sentence, file=sys.stderr, flush=True)
    if EXITS[reason] != Exit.done and (folder := log_dir()) is not None:
        note_end(folder, EXITS[reason], sentence)


def newest_in_words(run_dir: Path) -> str:
    """Say which checkpoint a run goes on from."""
    from trainer.checkpoint.layout import find_checkpoints

    found = find_checkpoints(run_dir)
    return f"The newest checkpoint is {found[0]}." if found else f"There is no checkpoint in {run_dir}."


def _say_stopped_generation(is_first: bool) -> int:
    if is_first:
        print("Stopped by a signal. Start the same command again to go on.", file=sys.stderr, flush=True)
    return Exit.preempted
