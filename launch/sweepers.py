"""Hydra sweepers: a grid, and Optuna's samplers. Both hand batches of points to a launcher of ours.

Optuna is spoken to by an own sweeper because hydra-optuna-sweeper (1.3.0) needs an Optuna older than 3, ends the sweep
when a point fails, and begins anew when it is started again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from trainer.errors import ConfigError

from .point_launcher import MODULE, PointLauncher
from .sweep import Sweep

LEAST_TRIED = 3
"""An Optuna sweep ends when so many points, or a whole batch, have failed and none has not."""


@dataclass
class GridSweeperConf:
    """Fields of hydra/sweeper=basic."""

    _target_: str = f"{MODULE}.GridSweeper"
    max_batch_size: int | None = None
    """Most points that are handed to the launcher together; null: all."""
    params: dict[str, str] = field(default_factory=dict)
    """Keys and values to sweep over, for a configuration file; the command line wins."""


@dataclass
class OptunaSweeperConf:
    """Fields of hydra/sweeper=optuna; the section `sweep` has what Optuna is told."""

    _target_: str = f"{MODULE}.OptunaSweeper"
    params: dict[str, str] = field(default_factory=dict)
    """As of the grid."""


class PointSweeper(Sweeper):
    """What both sweepers do alike."""

    sweep_of_points: Sweep
    launcher: PointLauncher[object]

    def __init__(self, params: DictConfig) -> None:
        """Take what the configuration sweeps over."""
        self._params = params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take the sweep and make its launcher."""
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        assert isinstance(launcher, PointLauncher) and isinstance(task_function, Sweep)
        self.launcher, self.sweep_of_points = launcher, task_function
        self.hydra_context, self.config = hydra_context, config

    def parse(self, arguments: Sequence[str]) -> list[Override]:
        """Return the overrides of configuration and command line.

        Raises:
            ConfigError: One cannot be read, or nothing is swept.
        """
        assert self.hydra_context is not None
        words = [f"{key!s}={value}" for key, value in self._params.items()]
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        try:
            overrides = parser.parse_overrides([*words, *arguments])
        except HydraException as error:
            raise ConfigError(f"A word of the sweep cannot be read: {str(error).splitlines()[0]}.") from error
        # The command line stands behind the configuration, and wins.
        last = {override.get_key_element(): override for override in overrides}
        if not any(override.is_sweep_override() for override in last.values()):
            raise ConfigError(
                "`-m` must be given a key with several values, but every key has one instead. Write "
                "optim.lr=1e-5,2e-5, seed=range(1,5) or, with hydra/sweeper=optuna, optim.lr=interval(1e-6,1e-4)."
            )
        return list(last.values())


class GridSweeper(PointSweeper):
    """Every combination of the values that are given, like Hydra's own, without its multirun.yaml."""

    __module__ = MODULE

    def __init__(self, max_batch_size: int | None, params: DictConfig) -> None:
        """Take the most points of a batch."""
        super().__init__(params)
        self._max_batch_size = max_batch_size

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Launch all points; check all of them before the first batch."""
        overrides = self.parse(arguments)
        for override in overrides:
            if override.is_sweep_override() and not override.is_discrete_sweep():
                raise ConfigError(
                    f"`{override.get_key_element()}` must be a list, range() or choice() for a grid, but is "
                    f"'{override.get_value_string()}' instead. Add hydra/sweeper=optuna to choose from an interval."
                )
        if self._max_batch_size is not None and self._max_batch_size < 1:
            raise ConfigError(
                f"`hydra.sweeper.max_batch_size` must be at least 1, but is {self._max_batch_size} instead. Leave it "
                "out for all points together."
            )
        batches = BasicSweeper.split_arguments(overrides, self._max_batch_size)
        self.sweep_of_points.num_points = sum(map(len, batches))
        if len(batches) > 1 or self.sweep_of_points.is_dry:
            self.launcher.prepare([words for batch in batches for words in batch])
        returns: list[Sequence[JobReturn]] = []
        for batch in batches:
            returns.append(self.launcher.launch(batch, initial_job_idx=sum(map(len, returns))))
        return returns


class OptunaSweeper(PointSweeper):
    """Points that one of Optuna's samplers chooses, in answer to the objectives of those before."""

    __module__ = MODULE

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Launch batches until there are sweep.trials points, those of earlier starts included.

        Raises:
            ConfigError: Optuna is missing, or every point fails.
        """
        from .search import Search

        sweep = self.sweep_of_points
        search = Search(self.parse(arguments), sweep.config, sweep.record.goal)
        for outcome in sweep.outcomes() if sweep.record.points else []:
            search.remember(outcome.point.params, outcome.objective)
        sweep.num_points = sweep.config.trials
        sweep.num_ended = search.num_good
        num_together = min(sweep.config.parallel, self.launcher.num_at_once or sweep.config.parallel)
        returns: list[Sequence[JobReturn]] = []
        while num_left := search.num_left:
            batch = search.ask(min(num_together, num_left))
            ended = self.launcher.launch(batch, initial_job_idx=sum(map(len, returns)))
            returns.append(ended)
            search.tell([one._return_value if one.status is JobStatus.COMPLETED else None for one in ended])
            if search.num_good == 0 and sum(map(len, returns)) >= max(LEAST_TRIED, num_together):
                # The sweep's end tells which, and why.
                break
        return returns
