"""Benchmark tasks and answers during training, within a share of the run's wall time.

Collective everywhere: every rank, same order. Rank 0's clock decides for all.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.checkpoint.state import TrainState
from trainer.config.data import Role
from trainer.config.during import DuringConfig
from trainer.config.metric import STDERR, task_metric
from trainer.dist.progress import PROGRESS, Phase
from trainer.engine.policy import Policy
from trainer.evaluate.answers import Answering, AskedPrompt, ask_file, ask_held_out
from trainer.evaluate.tasks.harness import NAMES_DURING, load_everywhere
from trainer.evaluate.tasks.score import TaskScore
from trainer.evaluate.tasks.scores import BASE_FILE_DURING, TaskScores
from trainer.metrics.sink import Value
from trainer.model.tune.prompt import virtual_off
from trainer.run.asking import base_identity, task_model
from trainer.run.heed import GivenUp, heeding
from trainer.run.journal import Journal
from trainer.run.session import Session
from trainer.runtime.signals import StopFlag

_LOG = logging.getLogger(__name__)
STOPPING = "the run was told to stop"


@dataclass(slots=True)
class Budget:
    """What tasks and answers took of a run's time, over all its attempts, and whether they are owed."""

    wall_s: float = 0.0
    spent_s: float = 0.0
    last_s: float = 0.0
    """The last time they were done; what the next time will take."""
    is_owed: bool = False

    @property
    def share(self) -> float:
        """Return the share of the time so far."""
        return self.spent_s / self.wall_s if self.wall_s > 0 else 0.0

    @property
    def share_with_next(self) -> float:
        """Return the share when they were done once more now."""
        total_s = self.wall_s + self.last_s
        return (self.spent_s + self.last_s) / total_s if total_s > 0 else 0.0

    def to_plain(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return dataclasses.asdict(self)


class DuringTraining:
    """Runs tasks and has prompts answered where they are due and there is time."""

    def __init__(
        self,
        policy: Policy,
        options: DuringConfig,
        num_steps: int,
        task_scores: TaskScores | None,
        answering: Answering | None,
        journal: Journal,
        stop_flag: StopFlag,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Take what is measured and how often; `num_steps` is the length of the run."""
        self._policy = policy
        self._options = options
        self._num_steps = num_steps
        self.task_scores = task_scores
        self._answering = answering
        self._journal = journal
        self._heed = heeding(policy.mesh, stop_flag)
        self._clock = clock
        self._budget = Budget()
        self._seen_s = 0.0

    @property
    def is_on(self) -> bool:
        """Tell whether anything is to be done."""
        return self.task_scores is not None or self._answering is not None

    def begin(self, state: TrainState) -> dict[str, float]:
        """Measure the base before the first step, or what a stopped attempt owes; return scores as they are logged."""
        if not self.is_on:
            return {}
        self._budget = Budget(**state.during)
        self._seen_s = self._clock()
        if state.step == 0:
            with virtual_off(self._policy.module):
                self._measure_base(state)
            state.during = self._budget.to_plain()
            return {}
        if self.task_scores is not None and not self.task_scores.base:
            _LOG.warning("Tasks: this run began before its base was scored; scores stand alone.")
        return self._do_if_there_is_time(state, None) if self._budget.is_owed else {}

    def measure(self, state: TrainState, is_stopping: bool) -> dict[str, float]:
        """Do what is due after this step, or put it off and say so; return scores as they are logged.

        Args:
            is_stopping: The run is about to stop: nothing is done that it has no time for.
        """
        if not self.is_on:
            return {}
        every = self._options.every_steps
        is_due = state.step == self._num_steps or bool(every and state.step % every == 0)
        self._tick()
        why = None
        if is_stopping:
            why = STOPPING
        elif state.bad_steps_in_a_row:
            why = "numbers are not finite"
        measured = self._do_if_there_is_time(state, why) if is_due or self._budget.is_owed else {}
        state.during = self._budget.to_plain()
        return measured

    def _do_if_there_is_time(self, state: TrainState, why_not: str | None) -> dict[str, float]:
        why_not = why_not or self._policy.mesh.broadcast(self._over_share())
        if why_not is None:
            try:
                return self._do(state)
            except GivenUp:
                why_not = STOPPING
        is_last = state.step == self._num_steps
        if is_last or not self._budget.is_owed:
            self._journal.put_off(state, why_not, is_last)
        self._budget.is_owed = True
        state.during = self._budget.to_plain()
        return {}

    def _over_share(self) -> str | None:
        """Return why there is no time now; None where there is."""
        budget, most = self._budget, self._options.max_share
        if budget.share_with_next <= most:
            return None
        return (
            f"another {budget.last_s:.3g} s would make them {100 * budget.share_with_next:.3g} % of the run's time so "
            f"far, and evaluate.during.max_share is {most:g}"
        )

    def _do(self, state: TrainState) -> dict[str, float]:
        PROGRESS.begin(Phase.generate)
        started, before_s = self._clock(), self._budget.spent_s
        try:
            scores = self.task_scores.measure(state.step, self._heed) if self.task_scores else []
            answers = self._answering.answer(self._heed) if self._answering else []
        finally:
            self._budget.spent_s = before_s + self._clock() - started
            self._tick()
        self._budget.last_s = self._budget.spent_s - before_s
        self._budget.is_owed = False
        state.during = self._budget.to_plain()
        self._journal.answers(state, answers)
        return self._log(state, scores, self._budget.last_s)

    def _measure_base(self, state: TrainState) -> None:
        """Score the base, which may be known already, and have it answer."""
        PROGRESS.begin(Phase.generate)
        started = self._clock()
        scores = self.task_scores.measure_base(self._heed) if self.task_scores else []
        answered = self._clock()
        self._journal.answers(state, self._answering.answer(self._heed) if self._answering else [])
        self._budget.spent_s = self._clock() - started
        known_s = self.task_scores.base_s if self.task_scores else 0.0
        self._budget.last_s = known_s + self._clock() - answered
        self._tick()
        self._log(state, scores, self._budget.spent_s)

    def _log(self, state: TrainState, scores: list[TaskScore], seconds: float) -> dict[str, float]:
        found: dict[str, float] = {}
        record: dict[str, Value] = {}
        for score in scores:
            key = task_metric(score.task, score.metric)
            found[key] = record[key] = math.nan if score.value is None else score.value
            if score.stderr is not None:
                record[key + STDERR] = score.stderr
        self._journal.scores(state, {**record, "tasks_time_s": seconds, "tasks_share": self._budget.share})
        return found

    def _tick(self) -> None:
        now_s = self._clock()
        self._budget.wall_s += now_s - self._seen_s
        self._seen_s = now_s


def build_during(
    session: Session, num_steps: int, known: TaskScores | None, journal: Journal, stop_flag: StopFlag
) -> DuringTraining:
    """Load the tasks and lay out the prompts. Collective: every rank.

    Args:
        known: The tasks of the run's end; taken where those during training are the same.
    """
    evaluate = session.config.evaluate
    task_scores = known if evaluate.during.tasks and evaluate.tasks_during == evaluate.tasks else None
    if evaluate.during.tasks and task_scores is None:
        task_scores = TaskScores(
            session.run_dir / BASE_FILE_DURING,
            Path(session.config.data.cache_dir),
            load_everywhere(evaluate.tasks_during, session.mesh, NAMES_DURING),
            task_model(session),
            session.tokenizer,
            base_identity(session),
        )
    answering = _build_answering(session) if evaluate.during.has_samples else None
    return DuringTraining(
        session.policy, evaluate.during, num_steps, task_scores, answering, journal, stop_flag
    )


def _build_answering(session: Session) -> Answering:
    samples, config = session.config.evaluate.during.samples, session.config

    def ask() -> list[AskedPrompt]:
        if samples.file is not None:
            return ask_file(samples, session.tokenizer)
        held_out = {
            name: session.stores[name].validation
            for name, source in config.data.sources.items()
            if source.role is Role.target
        }
        return ask_held_out(held_out, samples.num, samples.max_new_tokens, session.tokenizer)

    asked = session.mesh.from_first(ask)
    return Answering(task_model(session), session.tokenizer, asked, samples.max_new_tokens)
