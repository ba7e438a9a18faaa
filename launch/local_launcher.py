"""hydra/launcher=local: every point is a `palimpsest train` on this machine, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hydra.core.utils import JobReturn

from trainer.command.missing_here import missing
from trainer.config.check import find_problems, refuse
from trainer.config.rule import Problem, must
from trainer.config.schema import RunConfig
from trainer.config.snapshot import freeze
from trainer.errors import Exit

from .point_launcher import MODULE, PointLauncher
from .points import Point
from .run_here import run_here
from .sweep import SweepStopped


@dataclass
class LocalLauncherConf:
    """Fields of hydra/launcher=local."""

    _target_: str = f"{MODULE}.LocalLauncher"


class LocalLauncher(PointLauncher[RunConfig]):
    """Trains points one after the other; one that fails does not end the sweep."""

    __module__ = MODULE
    num_at_once = 1

    def check(self, config: RunConfig) -> RunConfig:
        """Check a point as `palimpsest train` does before it counts GPUs; a dry run asks for no files."""
        rules = [*find_problems(config), *_node_problems(config)]
        broken = {rule.key for rule in rules}
        absent = [] if self.sweep.is_dry else missing(config, "train")
        refuse([*rules, *(one for one in absent if one.key not in broken)])
        return config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Train what has not finished.

        Raises:
            ConfigError: A point breaks a rule.
            SweepStopped: A signal stopped a run, which has saved.
        """
        prepared = self.prepare(job_overrides)
        points = [point for point, _ in prepared]
        self.sweep.add(points)
        for point, config in prepared:
            self._run(point, config)
        return self.returns(points)

    def _run(self, point: Point, config: RunConfig) -> None:
        run_dir = self.sweep.run_dir(point)
        if self.sweep.has_ended_before(point):
            return
        print(f"{point.name}: {' '.join(point.words)}; log in {run_dir}/logs", flush=True)
        code, was_stopped = run_here(freeze(config, run_dir), run_dir)
        if was_stopped:
            self.sweep.outcomes()
            left = self.sweep.num_points - self.sweep.num_ended - (code == Exit.done)
            raise SweepStopped(
                f"Stopped by a signal. Points left: {left}. Start the same command again to go on.",
                Exit.preempted,
            )
        self.sweep.say_ended(point)


def _node_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield a problem when the run is for more nodes than this machine."""
    if config.cluster.num_nodes > 1 and config.cluster.hostfile is None:
        yield must(
            "cluster.num_nodes",
            "1 for `palimpsest train -m`, without a hostfile",
            config.cluster.num_nodes,
            "Use `palimpsest submit -m` for SLURM.",
        )
