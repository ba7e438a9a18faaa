"""What loaded tasks will measure: the names of their scores, and which values of each are better."""

from __future__ import annotations

import difflib

from trainer.config.metric import Direction, task_metric
from trainer.errors import ConfigError
from trainer.evaluate.tasks.harness import NAMES_DURING, LoadedTasks


def check_metric(metric: str, loaded: LoadedTasks) -> None:
    """Raise when tasks/TASK/METRIC is not among what the tasks will give.

    Raises:
        ConfigError: Names the metrics that are, and whether a task says which values are better.
    """
    known = _metrics(loaded)
    if metric not in known:
        near = difflib.get_close_matches(metric, known, n=1, cutoff=0.5)
        raise ConfigError(
            f"`checkpoint.best.metric` must be a metric of the tasks in {NAMES_DURING} ({'; '.join(known)}), but is "
            f"'{metric}' instead." + (f" Did you mean '{near[0]}'?" if near else " Name one of them.")
        )


def better_direction(metric: str, asked: Direction | None, loaded: LoadedTasks) -> Direction:
    """Return which values of tasks/TASK/METRIC are better: as the task says, else as was asked.

    Raises:
        ConfigError: Neither says it, or they differ.
    """
    check_metric(metric, loaded)
    is_higher = _metrics(loaded)[metric]
    told = None if is_higher is None else Direction.maximize if is_higher else Direction.minimize
    found = told or asked
    if found is None or (asked is not None and asked is not found):
        rule = "maximize or minimize" if found is None else found.value
        raise ConfigError(
            f"`checkpoint.best.direction` must be {rule} for {metric}, as the task "
            f"{'does not say which' if found is None else 'has it'}, but is "
            f"{'null' if asked is None else asked.value} instead. Set it."
        )
    return found


def _metrics(loaded: LoadedTasks) -> dict[str, bool | None]:
    """Return every score that the tasks will give by the name it is logged under, and whether more is better."""
    found: dict[str, dict[str, bool | None]] = {}
    for name, task in loaded.plain["tasks"].items():
        is_higher = task.higher_is_better()
        filters = [one.name for one in getattr(task, "_filters", [])] or ["none"]
        found[name] = {
            metric if chosen == "none" else f"{metric},{chosen}": is_higher.get(metric)
            for metric in task.aggregation()
            for chosen in filters
        }
    for name, group in loaded.plain["groups"].items():
        below = [found[task.task_name] for task in group.get_all_tasks() if task.task_name in found]
        means = {str(one.metric) for one in group.aggregate_metric_list or ()}
        found[name] = {
            metric: value
            for metrics in below
            for metric, value in metrics.items()
            if metric.partition(",")[0] in means
        }
    return {
        task_metric(name, metric): value
        for name, metrics in found.items()
        for metric, value in metrics.items()
    }
