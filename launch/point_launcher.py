"""What the launchers of sweeps do alike: name points, check all before any is started, tell Hydra how they ended."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from trainer.config.schema import RunConfig
from trainer.errors import ConfigError, TrainerError

from .points import Point
from .sweep import DryRunShown, Sweep

MODULE = "hydra_plugins.palimpsest"
"""Hydra takes plugins only from packages that begin like this; ours are registered under such a name instead."""

T = TypeVar("T")


class PointFailed(TrainerError):
    """A point of a sweep ended without an objective."""


class PointLauncher(Launcher, Generic[T]):
    """A Hydra launcher whose jobs are the runs of a sweep; T is a run that passed every check."""

    sweep: Sweep
    num_at_once: int | None = None
    """Most points that run side by side; None for as many as there are."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take the sweep, which stands in the place of Hydra's task.

        Raises:
            ConfigError: Another program than ours chose this launcher.
        """
        if not isinstance(task_function, Sweep):
            raise ConfigError(
                "`hydra/launcher` must be one of Hydra's own outside of palimpsest, but is one of palimpsest's "
                "instead. Use: palimpsest train -m, or palimpsest submit -m."
            )
        self.sweep = task_function

    @abstractmethod
    def check(self, config: RunConfig) -> T:
        """Return a run that breaks no rule.

        Raises:
            ConfigError: Lists what it breaks.
        """

    def prepare(self, job_overrides: Sequence[Sequence[str]]) -> list[tuple[Point, T]]:
        """Name points and check all of them.

        Raises:
            ConfigError: Lists the problems of all points.
            DryRunShown: They were shown instead.
        """
        points = self.sweep.points(job_overrides)
        checked = self.sweep.checked(points, self.check)
        if self.sweep.is_dry:
            print(f"Points below {self.sweep.folder}: {len(points)}", file=sys.stderr)
            for point in points:
                print(f"  {point.name}: {' '.join(point.words)}", file=sys.stderr)
            self.show(checked[0])
            raise DryRunShown
        return list(zip(points, checked, strict=True))

    def show(self, checked: T) -> None:
        """Print what a dry run shows of its first point."""

    def returns(self, points: Sequence[Point]) -> list[JobReturn]:
        """Return what became of points that have ended: the objective, or why there is none."""
        outcomes = {one.name: one for one in self.sweep.outcomes()}
        found: list[JobReturn] = []
        for point in points:
            outcome = outcomes[point.name]
            value: Any = outcome.objective
            status = JobStatus.COMPLETED
            if value is None:
                value, status = PointFailed(f"{point.name}: {outcome.error}"), JobStatus.FAILED
            found.append(
                JobReturn(
                    overrides=point.words,
                    working_dir=str(self.sweep.run_dir(point)),
                    task_name=point.name,
                    status=status,
                    _return_value=value,
                )
            )
        return found
