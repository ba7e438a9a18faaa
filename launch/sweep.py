"""What the points of a sweep share: their names and directories, the rules they are checked by, and their record."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from trainer.config.apart import refuse_run_dir
from trainer.config.check import refuse
from trainer.config.check_sweep import sweep_problems
from trainer.config.override import is_swept
from trainer.config.schema import RunConfig
from trainer.config.snapshot import config_path, refuse_another
from trainer.config.store import compose_config
from trainer.errors import ConfigError, Exit
from trainer.runtime.lock import run_lock

from .attempts import has_finished
from .outcome import Outcome, find_outcome, find_outcomes, remember, say_end, say_point, write_page
from .points import Goal, Point, Record, point_name, read_record

T = TypeVar("T")


class DryRunShown(Exception):
    """Ends a dry run when its first points were shown."""


class SweepStopped(Exception):
    """A signal ended the sweep; the sentence says what goes on and how to go on."""

    def __init__(self, sentence: str, code: int) -> None:
        """Take the sentence and the exit code."""
        super().__init__(sentence)
        self.code = code


class Sweep:
    """What the points of a sweep share. Handed to Hydra as the task, which our launchers never call."""

    def __init__(
        self, words: Sequence[str], base: RunConfig, is_dry: bool, say: Callable[[str], None]
    ) -> None:
        """Take the words of the command line and what they make without those that are swept.

        Args:
            say: Says a line that it has not said before.
        Raises:
            ConfigError: The directory holds something else.
        """
        self.folder = Path(base.run_dir).expanduser().resolve()
        self.is_dry = is_dry
        self.base = base
        """What the words make without those that are swept."""
        self.config = base.sweep
        self.num_points = 0
        """Points that there will be, as the sweeper knows."""
        self.num_ended = 0
        self.was_handed_in = False
        """Whether jobs were left to themselves, so that there is no end to tell of."""
        self._fixed = [word for word in words if not is_swept(word)]
        if config_path(self.folder).exists():
            raise ConfigError(
                f"`run_dir` must be a folder of its own for a sweep, but {self.folder} holds a run instead. Give "
                "another run_dir."
            )
        known = read_record(self.folder)
        if known is None:
            refuse_run_dir(base, self.folder)
        points = [] if known is None else known.points
        self.record = Record(base.name, Goal.of(base.sweep), points)
        self._say = say
        self._configs: dict[str, RunConfig] = {}
        self._lock = contextlib.ExitStack()
        self._is_locked = False

    def __call__(self, config: Any) -> Any:
        """Raise: a point is a process or a job of its own."""
        raise TypeError("Only hydra/launcher=slurm and local can run a sweep of palimpsest.")

    def points(self, batch: Sequence[Sequence[str]]) -> list[Point]:
        """Return the points of a sweeper's overrides; those of an earlier start keep their names.

        Raises:
            ConfigError: The directory belongs to a sweep over other keys, or a point cannot be composed.
        """
        fixed = {key_of(word) for word in self._fixed}
        found: list[Point] = []
        for words in batch:
            params = {key_of(word): word.partition("=")[2] for word in words if key_of(word) not in fixed}
            order = list(self.record.points[0].params) if self.record.points else []
            params = {key: params[key] for key in [*order, *params] if key in params}
            known = self.record.find(params) or next((p for p in found if p.params == params), None)
            if known is None:
                num_new = sum(self.record.find(point.params) is None for point in found)
                known = Point(point_name(len(self.record.points) + num_new + 1, params), params)
            found.append(known)
        keys = {tuple(sorted(point.params)) for point in [*self.record.points, *found]}
        if len(keys) > 1:
            old, new = (", ".join(p[0].params) for p in (self.record.points, found))
            raise ConfigError(
                f"`run_dir` must hold a sweep over {new}, but {self.folder} holds one over {old} instead. Give another "
                "run_dir."
            )
        return found

    def checked(self, points: Sequence[Point], check: Callable[[RunConfig], T]) -> list[T]:
        """Compose all points and check each; return what the checks return.

        Raises:
            ConfigError: Lists the problems of all points.
        """
        results: list[T] = []
        problems: dict[str, list[str]] = {}
        for point in points:
            try:
                config = self.run_config(point)
                refuse([*sweep_problems(config.sweep, config.data, config.evaluate)])
                refuse_another(config, Path(config.run_dir))
                results.append(check(config))
            except ConfigError as error:
                problems.setdefault(str(error), []).append(point.name)
        if problems:
            raise ConfigError(
                "No point was started, because of:\n"
                + "\n".join(
                    f"{'All points' if len(names) == len(points) > 1 else ', '.join(names)}: {text}"
                    for text, names in problems.items()
                )
            )
        return results

    def run_config(self, point: Point) -> RunConfig:
        """Return the configuration of a point's run."""
        if point.name not in self._configs:
            config = compose_config(
                [*self._fixed, *point.words], say=lambda line: self._say(point.hidden(line))
            )
            log = dataclasses.replace(config.log, group=config.log.group or self.record.name)
            self._configs[point.name] = dataclasses.replace(
                config, name=f"{self.record.name}-{point.name}", run_dir=str(self.run_dir(point)), log=log
            )
        return self._configs[point.name]

    def run_dir(self, point: Point) -> Path:
        """Return the directory of a point's run."""
        return self.folder / point.name

    def say_ended(self, point: Point) -> None:
        """Print how a point ended."""
        self.num_ended += 1
        outcome = find_outcome(self.folder, point, self.record.goal)
        say_point(outcome, self.record.goal, f"[{self.num_ended}/{self.num_points}]")

    def has_ended_before(self, point: Point) -> bool:
        """Tell whether an earlier start of the sweep has trained a point to its end, and print it."""
        if not has_finished(self.run_dir(point)):
            return False
        self.num_ended += 1
        print(f"[{self.num_ended}/{self.num_points}] {point.name} has finished before.", flush=True)
        return True

    def add(self, points: Sequence[Point]) -> None:
        """Remember points in sweep.json before anything of them is started, and keep others off the directory.

        Raises:
            ConfigError: The directory cannot be written to.
            CheckpointError: Another living process has it.
        """
        self.record.points += [point for point in points if self.record.find(point.params) is None]
        try:
            if not self._is_locked:
                self._lock.enter_context(run_lock(self.folder))
                self._is_locked = True
            self.outcomes()
        except OSError as error:
            raise ConfigError(
                f"`run_dir` must be a folder you can write to, but {self.folder} is not: {error.strerror}. Set "
                "run_dir."
            ) from error

    def outcomes(self) -> list[Outcome]:
        """Return what became of all points so far, and write it to sweep.json."""
        outcomes = find_outcomes(self.folder, self.record)
        remember(self.folder, self.record, outcomes)
        return outcomes

    def close(self) -> None:
        """Let others have the directory."""
        self._lock.close()

    def end(self) -> int:
        """Tell how the sweep ended; return the exit code.

        Raises:
            ConfigError: Every point failed.
        """
        outcomes = self.outcomes()
        if self.was_handed_in:
            print(f"See: palimpsest status {self.folder}")
            print(f"The table and the figure of the sweep: palimpsest report run_dir={self.folder}")
            return Exit.done
        say_end(self.folder, self.record, outcomes)
        print(f"Figure: {write_page(self.folder, self.record, outcomes)}", flush=True)
        if outcomes and all(one.objective is None for one in outcomes):
            raise ConfigError(
                f"No point of {self.folder} has an objective. {outcomes[0].name}: {outcomes[0].error}. Mend the cause "
                "and start the same command again."
            )
        return Exit.done


def key_of(word: str) -> str:
    """Return the key of an override, without Hydra's `+`."""
    return word.partition("=")[0].lstrip("+~")
