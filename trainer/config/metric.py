"""The numbers of metrics.jsonl by which a checkpoint, or a point of a sweep, is called better: names and directions."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

from trainer.config.data import DataConfig, Format, Role

EVAL_MEAN = "eval_mean"
FORGETTING = "forgetting"
KL_MEAN = "kl_mean"
PAIR_LOSS, ACCURACY = "eval_pair_loss", "eval_accuracy"
"""Of held-out pairs, by source."""
ANSWER_LOSS = "eval_answer_loss"
"""Of held-out answers with labels, by source."""
PROBE, PROBE_LOW, PROBE_HIGH = "probe", "probe_low", "probe_high"
"""Rise of the loss on a kind of text that nobody named over the base's, and its interval, by kind."""
POINT = "eval_reference_point"
"""Of KTO on held-out answers, one number for all sources: in TRL the KL, in nats an answer."""
CHAT_PROMPTS = "fixed_conversations"
"""In whose name a chat model has a KL to its base as well; no source may have it."""
TASK = "tasks/"
STDERR = "_stderr"


class Direction(Enum):
    """Which values of a number are better."""

    minimize = "minimize"
    """Less is better."""
    maximize = "maximize"
    """More is better."""


_USUAL = {
    Direction.maximize: (
        *("acc", "acc_norm", "acc_mutual_info", "acc_bytes", "acc_all", "exact_match", "f1", "mcc", "bleu"),
        *("chrf", "likelihood"),
    ),
    Direction.minimize: (
        *("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter"),
    ),
}
"""Of metrics as lm-eval registers them."""


def task_metric(task: str, metric: str) -> str:
    """Return the key under which a score of a benchmark task is logged; its standard error has `_stderr` behind it."""
    return f"{TASK}{task}/{metric}"


def is_task_metric(name: str) -> bool:
    """Tell whether a name is that of a score: tasks/TASK/METRIC."""
    parts = name.split("/")
    return len(parts) == 3 and f"{parts[0]}/" == TASK and bool(parts[1]) and bool(parts[2])


def usual_direction(name: str) -> Direction | None:
    """Return which values are better of what is measured at an evaluation; None for a metric that is not known."""
    if not name.startswith(TASK):
        return Direction.maximize if name.startswith(f"{ACCURACY}/") else Direction.minimize
    metric = name.rpartition("/")[2].partition(",")[0]
    return next((direction for direction, names in _USUAL.items() if metric in names), None)


def held_out_metrics(data: DataConfig) -> Iterator[str]:
    """Yield what every evaluation logs of the held-out text there is."""
    held_out = [
        name for name, source in data.sources.items() if data.validation_frac > 0 or source.role is Role.probe
    ]
    if held_out:
        yield EVAL_MEAN
    yield from (f"eval/{name}" for name in held_out)
    for name in held_out:
        if data.sources[name].format is Format.preference:
            yield from (f"{quantity}/{name}" for quantity in (PAIR_LOSS, ACCURACY))
        elif data.sources[name].format is Format.unpaired:
            yield f"{ANSWER_LOSS}/{name}"
    if any(data.sources[name].role is not Role.target for name in held_out):
        yield FORGETTING


def kl_metrics(data: DataConfig) -> Iterator[str]:
    """Yield what `evaluate.during.kl` logs; that of the conversations only with a chat template."""
    yield KL_MEAN
    targets = [name for name, source in data.sources.items() if source.role is Role.target]
    yield from (f"kl/{name}" for name in [*targets, CHAT_PROMPTS])
