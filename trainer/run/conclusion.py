"""What trackers are told at the end: forgetting.json, the gate and the report, as figures, a table and words."""

from __future__ import annotations

import logging
from pathlib import Path

from trainer.config.gate import GateConfig
from trainer.config.metric import task_metric
from trainer.config.schema import RunConfig
from trainer.config.store import to_plain
from trainer.errors import TrainerError
from trainer.evaluate.gate import check_gate, check_tasks
from trainer.evaluate.record import FILE_NAME, ForgettingRecord, read_forgetting
from trainer.metrics.delivery import close_all
from trainer.metrics.jsonl import read
from trainer.metrics.tracker import Conclusion, by_source
from trainer.metrics.trackers import begin, run_card
from trainer.report.build import FILE_NAME as REPORT
from trainer.report.verdict import change_with_interval, verdict
from trainer.runtime.lock import run_lock

_LOG = logging.getLogger(__name__)
_COLUMNS = ("set", "role", "base, nats", "tuned, nats", "change, nats")


def conclusion(run_dir: Path, gate: GateConfig) -> Conclusion | None:
    """Return what a run came to by its files; None where it was not compared with its base."""
    found = read_forgetting(run_dir / FILE_NAME)
    if found is None:
        return None
    words = {"checkpoint": found.run.tuned, "verdict": verdict(found.sets)}
    if gate.has_rules:
        words["gate"] = _gate_in_words(found, gate)
    if (run_dir / REPORT).exists():
        words["report"] = str((run_dir / REPORT).resolve())
    rows = tuple(
        (one.name, one.role, f"{one.base_nats:.4f}", f"{one.tuned_nats:.4f}", change_with_interval(one))
        for one in found.sets
    )
    return Conclusion(found.run.steps, _numbers(found), _COLUMNS, rows, words)


def tell_trackers(config: RunConfig) -> None:
    """Tell the trackers of a run that is over what its files hold and they do not, and what it came to; one process."""
    run_dir = Path(config.run_dir)
    if not config.log.trackers:
        return
    try:
        with run_lock(run_dir):
            records = read(run_dir / "metrics.jsonl")
            card = run_card(config.log, run_dir, config.name, to_plain(config))
            newest = max((int(record["step"]) for record in records), default=-1)
            trackers = begin(config.log, card, newest, records)
            found = conclusion(run_dir, config.gate)
            if found is not None:
                for tracker in trackers:
                    tracker.conclude(found)
            close_all(trackers, None)
    except (TrainerError, OSError) as error:
        _LOG.warning("Trackers are not told of this. %s", error)


def _numbers(found: ForgettingRecord) -> dict[str, float]:
    numbers = {by_source("forgetting", one.name): one.change_nats for one in found.sets}
    numbers |= {by_source("kl", one.prompts): one.nats for one in found.kl}
    for task in found.tasks:
        if task.tuned is not None:
            numbers[task_metric(task.task, task.metric)] = task.tuned
        if task.change is not None:
            numbers[by_source("tasks_change", by_source(task.task, task.metric))] = task.change
    if found.replay is not None:
        numbers["replay_share"] = found.replay.ratio_reached
    return numbers


def _gate_in_words(found: ForgettingRecord, gate: GateConfig) -> str:
    try:
        results = check_gate(gate.sets, found.sets) + check_tasks(gate.tasks, found.tasks)
    except TrainerError as error:
        return f"not decided: {error}"
    failed = sum(not result.passed for result in results)
    return f"{failed} of {len(results)} rules broken" if failed else "passed"
