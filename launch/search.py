"""Optuna's part in a sweep: which values to try next, given the objectives of those tried. Nothing is kept on disk.

The runs are the record: a sweep that is started again hands the finished points over first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from trainer.config.sweep import SweepConfig, SweepSampler
from trainer.errors import ConfigError

from .points import Goal

try:
    import optuna
    from optuna.distributions import (
        BaseDistribution,
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )
    from optuna.trial import Trial, TrialState, create_trial
except ImportError as error:
    raise ConfigError(
        "`hydra/sweeper` must be basic without the package optuna, but is optuna instead. Install it with: pip install "
        "'palimpsest-trainer[sweep]'"
    ) from error


class Search:
    """A study in memory."""

    def __init__(self, overrides: Sequence[Override], config: SweepConfig, goal: Goal) -> None:
        """Take the words of the sweep, swept or not, and how to choose.

        Raises:
            ConfigError: A value cannot be chosen from.
        """
        self._space = {
            one.get_key_element().lstrip("+"): _distribution(one)
            for one in overrides
            if one.is_sweep_override()
        }
        self._fixed = [
            f"{one.get_key_element()}={one.get_value_element_as_str()}"
            for one in overrides
            if not one.is_sweep_override()
        ]
        self._config, self._goal = config, goal
        self._study: optuna.Study | None = None
        self._known: list[tuple[dict[str, Any], float]] = []
        self._again: list[dict[str, Any]] = []
        self._open: list[Trial] = []
        self._num_told = 0
        self.num_good = 0
        """Points with an objective."""

    def remember(self, params: dict[str, str], objective: float | None) -> None:
        """Take a point of an earlier start: to learn from, or to try again when it has no objective."""
        try:
            values = {key: _value(self._space[key], text) for key, text in params.items()}
            create_trial(params=values, distributions=self._space, value=0.0)
        except ValueError:
            # Outside of what is asked for now.
            return
        if objective is None:
            self._again.append(values)
        else:
            self._known.append((values, objective))
            self._num_told += 1
            self.num_good += 1

    @property
    def num_left(self) -> int:
        """Return how many points are still to be tried."""
        return max(self._config.trials - self._num_told, 0)

    def ask(self, num_points: int) -> list[list[str]]:
        """Choose points; return their overrides."""
        study = self._study = self._study or self._begin()
        self._open = [study.ask(self._space) for _ in range(num_points)]
        return [
            [*self._fixed, *(f"{key}={_text(trial.params[key])}" for key in self._space)]
            for trial in self._open
        ]

    def tell(self, objectives: Sequence[float | None]) -> None:
        """Take the objectives of the points that were asked for; None is a failure."""
        assert self._study is not None
        for trial, objective in zip(self._open, objectives, strict=True):
            state = TrialState.FAIL if objective is None else TrialState.COMPLETE
            self._study.tell(trial, objective, state=state)
            self.num_good += objective is not None
        self._num_told += len(objectives)

    def _begin(self) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # Another seed for every start: the same one would choose the first points again.
        seed = self._config.seed + len(self._known) + len(self._again)
        sampler: optuna.samplers.BaseSampler
        match self._config.sampler:
            case SweepSampler.tpe:
                # A batch is chosen before any of it is known; the liar keeps its points apart.
                sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
            case SweepSampler.random:
                sampler = optuna.samplers.RandomSampler(seed=seed)
        study = optuna.create_study(sampler=sampler, direction=self._goal.direction.value)
        for values, objective in self._known:
            study.add_trial(create_trial(params=values, distributions=self._space, value=objective))
        for values in self._again:
            study.enqueue_trial(values)
        return study


def _distribution(override: Override) -> BaseDistribution:
    """Return what a swept value is chosen from: an interval, numbers in order, or words."""
    value = override.value()
    key = override.get_key_element()
    try:
        if isinstance(value, IntervalSweep):
            low, high = value.start, value.end
            if low is None or high is None:
                raise ValueError("an end is missing")
            is_log = "log" in value.tags
            if isinstance(low, int) and isinstance(high, int):
                return IntDistribution(low, high, log=is_log)
            return FloatDistribution(float(low), float(high), log=is_log)
        texts = list(override.sweep_string_iterator())
        if isinstance(value, RangeSweep) and not value.shuffle:
            numbers = [float(text) for text in texts]
            if isinstance(value.start, float) or isinstance(value.step, float):
                return FloatDistribution(numbers[0], numbers[-1], step=float(abs(value.step)))
            return IntDistribution(int(numbers[0]), int(numbers[-1]), step=int(abs(value.step)))
        return CategoricalDistribution(texts)
    except (ValueError, IndexError) as error:
        raise ConfigError(
            f"`{key}` must be an interval with its lower end first, above 0 for tag(log, ...), or a list, but is "
            f"'{override.get_value_string()}' instead: {str(error).rstrip('.')}."
        ) from error


def _value(distribution: BaseDistribution, text: str) -> Any:
    """Return a value as Optuna has it, from the text of an override."""
    if isinstance(distribution, IntDistribution):
        return int(float(text))
    return float(text) if isinstance(distribution, FloatDistribution) else text


def _text(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)
