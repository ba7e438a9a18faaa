"""One rank of a started job: the command in place, and what its end means to whoever started it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from trainer.command.fitting import fitted_here
from trainer.config.check import check_config
from trainer.config.schema import RunConfig
from trainer.config.snapshot import dated, freeze
from trainer.dist.env import rank_env
from trainer.errors import ConfigError
from trainer.runtime.job import leave_exit_code

EXIT_REFUSED = 3
"""The gate refuses, or the run does not fit and `plan.strict` is set."""
EXIT_CODES = {"finished": 0, "early_stop": 0, "preempted": 75, "non_finite": 4}
"""Exit code by stop reason: 75 (EX_TEMPFAIL) asks for a requeue, 4 means numbers went wrong."""

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
    if command == "replay generate":
        from trainer.command.replay import run_generation

        return 0 if run_generation(config) else _say_stopped_generation(env.is_first)
    check_config(config, env.world_size)
    config = dated(fitted_here(config, env.world_size, env.is_first), Path(config.run_dir))
    if command in ("train", "evaluate"):
        from trainer.evaluate.tasks.harness import check_names

        check_names(config.evaluate.tasks)
    if command == "evaluate":
        from trainer.command.evaluate import run_evaluation

        return 0 if run_evaluation(config) else EXIT_REFUSED
    if command != "train":
        raise ConfigError(f"`{command}` must be started alone, not by a launcher. Run: palimpsest {command}")
    from trainer.run.training import run_training

    if env.is_first:
        freeze(config, Path(config.run_dir))
    reason = run_training(config).value
    if env.is_first and reason in END_SENTENCES:
        newest = newest_in_words(Path(config.run_dir))
        print(
            END_SENTENCES[reason].format(run_dir=config.run_dir, newest=newest), file=sys.stderr, flush=True
        )
    leave_exit_code(os.environ, EXIT_CODES[reason], env.is_first)
    return EXIT_CODES[reason]


def newest_in_words(run_dir: Path) -> str:
    """Say which checkpoint a run goes on from."""
    from trainer.checkpoint.layout import find_checkpoints

    found = find_checkpoints(run_dir)
    return f"The newest checkpoint is {found[0]}." if found else f"There is no checkpoint in {run_dir}."


def _say_stopped_generation(is_first: bool) -> int:
    if is_first:
        print("Stopped by a signal. Start the same command again to go on.", file=sys.stderr, flush=True)
    return EXIT_CODES["preempted"]
