"""hydra/launcher=slurm: every point is a job as `palimpsest submit` makes it, all of a batch in the queue together."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from trainer.config.schema import RunConfig
from trainer.errors import ConfigError, Exit

from .attempts import last_job
from .obstacles import Site
from .point_launcher import MODULE, PointLauncher
from .points import Point
from .slurm import ENDED, job_states
from .submit import Ready, check, find_site, hand_over
from .sweep import SweepStopped
from .waiting import ended_runs


@dataclass
class SlurmLauncherConf:
    """Fields of hydra/launcher=slurm."""

    _target_: str = f"{MODULE}.SlurmLauncher"
    wait: bool = True
    """False hands the jobs in and returns; a sweeper that needs their objectives has them waited for all the same."""


class SlurmLauncher(PointLauncher[Ready]):
    """Submits points, waits for their jobs through requeues, and returns their objectives."""

    __module__ = MODULE
    _site: Site

    def __init__(self, wait: bool) -> None:
        """Take whether to wait for the jobs."""
        self._waits = wait

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take the sweep; wait also where the sweeper needs objectives."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self._site = find_site(self.sweep.base, self.sweep.is_dry)
        # Once, before any point: a controller that does not answer is one problem.
        self._site()
        self._waits = self._waits or config.hydra.sweeper._target_ != f"{MODULE}.GridSweeper"

    def check(self, config: RunConfig) -> Ready:
        """Check a point as a submission of its own."""
        return check(config, self._site, self.sweep.is_dry)

    def show(self, checked: Ready) -> None:
        """Print the script of one point."""
        print(checked.script, end="")
        print("\n".join(checked.says), file=sys.stderr)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit what has neither finished nor is in the queue; wait for all.

        Raises:
            ConfigError: A point breaks a rule, or sbatch refuses one.
            SweepStopped: Ctrl-C while waiting. The jobs go on.
        """
        prepared = self.prepare(job_overrides)
        points = [point for point, _ in prepared]
        self.sweep.add(points)
        todo = [(point, ready) for point, ready in prepared if not self.sweep.has_ended_before(point)]
        self._submit(todo)
        self.sweep.outcomes()
        if not self._waits:
            self.sweep.was_handed_in = True
            return [JobReturn(overrides=point.words, task_name=point.name) for point in points]
        self._wait([point for point, _ in todo])
        return self.returns(points)

    def _submit(self, todo: Sequence[tuple[Point, Ready]]) -> None:
        """Submit points that have no job in the queue."""
        jobs = {point.name: last_job(self.sweep.run_dir(point)) for point, _ in todo}
        states = job_states([job for job in jobs.values() if job is not None])
        if states is None:
            raise ConfigError("SLURM must answer `squeue`, but does not. Is the controller up?")
        num_done = 0
        for point, ready in todo:
            job = jobs[point.name]
            state = states.get(job, "") if job is not None else ""
            if state and state not in ENDED:
                print(f"{point.name}: job {job} is {state.lower()} since an earlier start.")
                continue
            if num_done == 0:
                print("\n".join(ready.says))
            try:
                job = hand_over(ready)
            except ConfigError as error:
                raise ConfigError(
                    f"{point.name}: {error}. Submitted before it: {num_done}. Start the same command again to submit "
                    "the others."
                ) from error
            num_done += 1
            print(f"{point.name}: job {job} ({' '.join(point.words)})", flush=True)

    def _wait(self, points: Sequence[Point]) -> None:
        runs = {self.sweep.run_dir(point): point for point in points}
        if not runs:
            return
        print(f"Waiting for jobs: {len(runs)}. Ctrl-C leaves them running.", flush=True)
        try:
            for run_dir in ended_runs(list(runs), self.sweep.config.poll_s):
                self.sweep.say_ended(runs[run_dir])
        except KeyboardInterrupt:
            jobs = _alive(list(runs))
            numbers = " ".join(map(str, jobs))
            listed = f"{numbers} (scancel {numbers} ends them)" if jobs else "none"
            raise SweepStopped(
                f"\nStopped waiting. Jobs that go on by themselves: {listed}. Start the same command again to wait for "
                f"them, or see: palimpsest status {self.sweep.folder}",
                Exit.interrupted,
            ) from None


def _alive(runs: Sequence[Path]) -> list[int]:
    """Return the jobs that are still in the queue."""
    jobs = [job for job in map(last_job, runs) if job is not None]
    states = job_states(jobs)
    return jobs if states is None else [job for job in jobs if states.get(job, "COMPLETED") not in ENDED]
