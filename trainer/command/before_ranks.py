"""What can be known to be wrong before ranks start."""

from __future__ import annotations

from pathlib import Path

from trainer.config.schema import RunConfig
from trainer.config.tune import Quantise
from trainer.data.types import TokenizerLike


def check_draws(config: RunConfig, tokenizer: TokenizerLike) -> None:
    """Raise before ranks start when the run would draw what the stores do not hold."""
    from trainer.data.store.prepared import open_all
    from trainer.mix.mixing import Mixing

    stores = open_all(config.data, tokenizer)
    packs_per_step = config.train.global_batch_tokens // config.data.seq_len
    mixing = Mixing(config.data, config.replay, config.train, config.seed, stores, packs_per_step)
    if config.replay.kl.beta:
        mixing.replay_to_draw()


def check_quantiser(config: RunConfig) -> None:
    """Raise before ranks start when the base is to be quantised and nothing here can."""
    if config.tune.quantise is not Quantise.none:
        from trainer.model.tune.quantise import require_bitsandbytes

        require_bitsandbytes()


def check_logins(config: RunConfig) -> None:
    """Raise before ranks start when a tracker has no package or no login here."""
    from trainer.metrics.trackers import check_trackers

    check_trackers(config.log, Path(config.run_dir), config.cluster.environment)


def check_benchmarks(config: RunConfig, command: str) -> None:
    """Load the benchmark tasks before ranks start: a missing task or file is found, and data is downloaded, here."""
    if not config.evaluate.tasks.names:
        return
    from trainer.evaluate.tasks.harness import check_rules, load_tasks

    loaded = load_tasks(config.evaluate.tasks)
    if command == "evaluate" and config.evaluate.checkpoint != "base":
        check_rules(config.gate.tasks, loaded)
