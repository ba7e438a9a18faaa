"""Rules of the sweep section, checked for every point when there is a sweep. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from trainer.config.data import DataConfig
from trainer.config.metric import (
    ACCURACY,
    TASK,
    held_out_metrics,
    is_task_metric,
    kl_metrics,
    usual_direction,
)
from trainer.config.rule import Problem, must
from trainer.config.sweep import SweepConfig
from trainer.config.train import EvaluateConfig

METRICS = (
    *("loss", "loss_total", "kl_replay", "grad_norm", "tokens_per_s", "tokens_per_s_per_gpu"),
    *("step_time_s", "data_wait_frac", "mfu", "mfu_non_causal", "memory_gib", "skipped_steps"),
    *("padding_frac", "tokens_seen", "replay_share", "eval_time_s", "tasks_time_s", "tasks_share"),
    *("slowest_rank", "slowest_ratio", "divergence", "cross_entropy"),
)
"""Keys of metrics.jsonl that neither name a source nor are of an evaluation."""
_HELD_OUT = ("eval", "forgetting")


def sweep_problems(sweep: SweepConfig, data: DataConfig, evaluate: EvaluateConfig) -> Iterator[Problem]:
    """Yield every broken rule."""
    for key, value in (("trials", sweep.trials), ("parallel", sweep.parallel)):
        if value < 1:
            yield must(f"sweep.{key}", "at least 1", value, f"Set sweep.{key}=4.")
    if not sweep.poll_s > 0:
        yield must("sweep.poll_s", "more than 0", sweep.poll_s, "Set sweep.poll_s=10.")
    objective = sweep.objective
    if is_task_metric(objective):
        yield from _task_problems(sweep, evaluate)
        return
    held_out = list(held_out_metrics(data))
    possible = ["eval_mean", "forgetting", *(f"eval/{name}" for name in data.sources), *kl_metrics(data)]
    possible += [name for name in held_out if name not in possible]
    known = [*METRICS, *possible, *(f"loss/{name}" for name in data.sources), f"{TASK}TASK/METRIC"]
    if objective not in known[:-1]:
        near = difflib.get_close_matches(objective, known, n=1, cutoff=0.6)
        yield must(
            "sweep.objective",
            f"a number that metrics.jsonl has, one of {', '.join(known)}",
            objective,
            f"Set sweep.objective={near[0] if near else 'eval_mean'}.",
        )
    elif objective == "forgetting" and objective not in held_out and data.validation_frac > 0:
        yield must(
            "sweep.objective",
            "another number than forgetting where every source is a target",
            objective,
            "Add a source with role=probe, or set sweep.objective=eval_mean.",
        )
    elif objective.startswith(_HELD_OUT) and objective not in held_out:
        yield must(
            "data.validation_frac",
            f"more than 0 for sweep.objective={objective}",
            data.validation_frac,
            "Set 0.02, or sweep.objective=loss.",
        )
    elif objective in kl_metrics(data) and not evaluate.during.kl:
        yield must("evaluate.during.kl", f"true for sweep.objective={objective}", False, "Set it.")
    elif objective.startswith(ACCURACY):
        yield from _direction_problems(sweep)


def _task_problems(sweep: SweepConfig, evaluate: EvaluateConfig) -> Iterator[Problem]:
    """Yield what is wrong with a benchmark task as an objective; whether it has the metric is found out at loading."""
    if not evaluate.during.tasks:
        task = sweep.objective.split("/")[1]
        yield must(
            "evaluate.during.tasks",
            f"tasks, of which sweep.objective={sweep.objective} is one",
            "empty",
            f"Set evaluate.during.tasks=[{task}].",
        )
    yield from _direction_problems(sweep)


def _direction_problems(sweep: SweepConfig) -> Iterator[Problem]:
    usual = usual_direction(sweep.objective)
    if usual is not None and usual is not sweep.direction:
        yield must(
            "sweep.direction",
            f"{usual.value} for sweep.objective={sweep.objective}",
            sweep.direction.value,
            f"Set sweep.direction={usual.value}.",
        )
