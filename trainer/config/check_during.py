"""Rules about what is evaluated during training, and about the number that the best checkpoint is the best by. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from trainer.config.data import DataConfig
from trainer.config.metric import (
    EVAL_MEAN,
    FORGETTING,
    TASK,
    held_out_metrics,
    is_task_metric,
    kl_metrics,
    usual_direction,
)
from trainer.config.rule import Problem, must
from trainer.config.train import CheckpointConfig, EvaluateConfig


def during_problems(evaluate: EvaluateConfig, data: DataConfig) -> Iterator[Problem]:
    """Yield every broken rule about what is evaluated during training."""
    during, samples = evaluate.during, evaluate.during.samples
    if during.every_steps < 0:
        yield must(
            "evaluate.during.every_steps", "0 or more", during.every_steps, "Set 0 for the ends alone."
        )
    if not 0 < during.max_share <= 1:
        yield must(
            "evaluate.during.max_share", "in (0, 1]", during.max_share, "It is a share; 1 is no limit."
        )
    if len(set(during.tasks)) < len(during.tasks):
        yield must("evaluate.during.tasks", "different names", ", ".join(during.tasks), "Name each once.")
    if during.limit is not None and during.limit < 1:
        yield must("evaluate.during.limit", "at least 1", during.limit, "Set 100, or leave it out.")
    if during.kl and not (evaluate.forgetting and evaluate.kl_packs > 0):
        key, value = ("evaluate.forgetting", False) if not evaluate.forgetting else ("evaluate.kl_packs", 0)
        rule = "true" if not evaluate.forgetting else "more than 0"
        yield must(key, f"{rule} with evaluate.during.kl", value, "The base's answers are kept for both.")
    if samples.num < 0:
        yield must("evaluate.during.samples.num", "0 or more", samples.num, "Set 4.")
    if samples.num > 0 and samples.file is None and not data.validation_frac > 0:
        yield must(
            "evaluate.during.samples.file",
            "given where no target is held out (data.validation_frac)",
            None,
            "Name a file of prompts, or set data.validation_frac=0.02.",
        )
    if samples.max_new_tokens < 1:
        yield must("evaluate.during.samples.max_new_tokens", "at least 1", samples.max_new_tokens, "Set 64.")
    if samples.file is not None and not samples.file.endswith((".jsonl", ".txt")):
        yield must("evaluate.during.samples.file", "a .jsonl or .txt file", samples.file, "Rename it.")
    if samples.apply_chat_template and samples.file is None:
        yield must(
            "evaluate.during.samples.apply_chat_template",
            "false without a file",
            True,
            "Held-out documents are in the template already.",
        )


def best_problems(
    checkpoint: CheckpointConfig, evaluate: EvaluateConfig, data: DataConfig
) -> Iterator[Problem]:
    """Yield every broken rule about the best checkpoint; whether a task has the metric is found out at loading."""
    best, key = checkpoint.best, "checkpoint.best.metric"
    metric = best.metric
    if metric == EVAL_MEAN and best.direction is None:
        return
    if not (checkpoint.keep_best and checkpoint.enabled):
        missing = "keep_best" if checkpoint.enabled else "enabled"
        yield must(f"checkpoint.{missing}", f"true with {key}={metric}", False, "Set it, or leave both out.")
    if is_task_metric(metric):
        if not evaluate.during.tasks:
            task = metric.split("/")[1]
            fix = f"Set evaluate.during.tasks=[{task}]."
            yield must("evaluate.during.tasks", f"tasks, of which {key}={metric} is one", "empty", fix)
    else:
        yield from _held_out_problems(key, metric, evaluate, data)
    usual = usual_direction(metric)
    if best.direction is not None and usual is not None and best.direction is not usual:
        yield must(
            "checkpoint.best.direction",
            f"{usual.value}, or left out, for {metric}",
            best.direction.value,
            "Leave it out.",
        )


def _held_out_problems(
    key: str, metric: str, evaluate: EvaluateConfig, data: DataConfig
) -> Iterator[Problem]:
    held_out = list(held_out_metrics(data))
    known = [*held_out, *(kl_metrics(data) if evaluate.during.kl else ()), f"{TASK}TASK/METRIC"]
    if metric in known[:-1]:
        return
    if metric in kl_metrics(data):
        yield must("evaluate.during.kl", f"true for {key}={metric}", False, "Set it.")
        return
    near = difflib.get_close_matches(metric, known, n=1, cutoff=0.6)
    why = ""
    if metric == FORGETTING or metric.startswith("eval"):
        why = (
            " Only what is held out is measured: raise data.validation_frac, or add a source with role=probe."
        )
    yield must(
        key,
        f"a number that is measured during this run, one of {', '.join(known)}",
        metric,
        f"Set {key}={near[0]}.{why}" if near else f"Choose one of them.{why}",
    )
