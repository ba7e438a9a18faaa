"""Rules of the sweep section, checked for every point when there is a sweep. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from trainer.config.data import DataConfig, Role
from trainer.config.rule import Problem, must
from trainer.config.sweep import SweepConfig

METRICS = (
    *("eval_mean", "loss", "loss_total", "kl_replay", "grad_norm", "tokens_per_s", "tokens_per_s_per_gpu"),
    *("step_time_s", "data_wait_frac", "mfu", "mfu_non_causal", "memory_gib", "skipped_steps"),
    *("tokens_seen", "replay_share", "eval_time_s"),
)
"""Keys of metrics.jsonl that do not name a source."""
_BY_SOURCE = ("eval/", "loss/")


def sweep_problems(sweep: SweepConfig, data: DataConfig) -> Iterator[Problem]:
    """Yield every broken rule."""
    for key, value in (("trials", sweep.trials), ("parallel", sweep.parallel)):
        if value < 1:
            yield must(f"sweep.{key}", "at least 1", value, f"Set sweep.{key}=4.")
    if not sweep.poll_s > 0:
        yield must("sweep.poll_s", "more than 0", sweep.poll_s, "Set sweep.poll_s=10.")
    known = [*METRICS, *(prefix + name for prefix in _BY_SOURCE for name in data.sources)]
    if sweep.objective not in known:
        near = difflib.get_close_matches(sweep.objective, known, n=1, cutoff=0.6)
        yield must(
            "sweep.objective",
            f"a number that metrics.jsonl has, one of {', '.join(known)}",
            sweep.objective,
            f"Set sweep.objective={near[0] if near else 'eval_mean'}.",
        )
    elif sweep.objective.startswith("eval") and not _is_held_out(sweep.objective, data):
        yield must(
            "data.validation_frac",
            f"more than 0 for sweep.objective={sweep.objective}",
            data.validation_frac,
            "Set 0.02, or sweep.objective=loss.",
        )


def _is_held_out(objective: str, data: DataConfig) -> bool:
    names = [objective[5:]] if objective.startswith("eval/") else list(data.sources)
    return data.validation_frac > 0 or any(data.sources[name].role is Role.probe for name in names)
