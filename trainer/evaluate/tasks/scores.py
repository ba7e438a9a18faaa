"""The scores of benchmark tasks: the base model's, kept by what they belong to, beside the tuned one's.

Collective: every rank calls everything here in the same order; rank 0 writes.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from trainer.config.snapshot import write_atomic
from trainer.data.store.prepared import digest_of
from trainer.evaluate.base import BaseIdentity
from trainer.evaluate.tasks.asked_task import AskedTask
from trainer.evaluate.tasks.batches import TaskModel
from trainer.evaluate.tasks.harness import LoadedTasks, run_tasks, tasks_digest
from trainer.evaluate.tasks.score import TaskComparison, TaskScore, compare_scores
from trainer.model.tokenizer import Tokenizer
from trainer.runtime.seal import read_sealed, sealed_text

_LOG = logging.getLogger(__name__)
BASE_FILE = "base_tasks.json"
BASE_FILE_DURING = "base_tasks_during.json"

Kept = tuple[list[TaskScore], float]
"""Scores of the base, and the seconds that they took when they were measured."""


class TaskScores:
    """Keeps what tasks said of the base model and runs them on the tuned one."""

    def __init__(
        self,
        path: Path,
        cache_dir: Path,
        loaded: LoadedTasks | None,
        model: TaskModel,
        tokenizer: Tokenizer,
        base: BaseIdentity,
        asked: Sequence[AskedTask] = (),
    ) -> None:
        """Find the base's scores: of this run, or in the cache of another run of the same base and tasks.

        Args:
            path: Of the base's scores in the run directory.
            loaded: Tasks of lm-eval, if any.
            asked: Tasks of our own.
        """
        self.loaded = loaded
        self._asked = asked
        self._model = model
        self._tokenizer = tokenizer
        self._path = path
        self._newest: tuple[int, list[TaskScore]] | None = None

        def find() -> tuple[str, str, Kept | None]:
            of_tasks = [] if loaded is None else [tasks_digest(loaded)]
            named = [base.digest, tokenizer.digest, base.dtype, *of_tasks, *(one.digest for one in asked)]
            key = digest_of({"tasks": named})
            cache = cache_dir / "evaluations" / f"tasks-{base.shared_key(key)}.json"
            return key, str(cache), _read(path, key) or _read(cache, key)

        found: tuple[str, str, Kept | None] = model.policy.mesh.from_first(find)
        self._key, self._cache = found[0], Path(found[1])
        self._base = found[2]

    @property
    def base(self) -> list[TaskScore]:
        """Return the base's scores as far as they are known."""
        return self._base[0] if self._base is not None else []

    @property
    def base_s(self) -> float:
        """Return the seconds that the base took when it was scored; 0 where it was not yet."""
        return self._base[1] if self._base is not None else 0.0

    def measure_base(self, heed: Callable[[], None] = lambda: None) -> list[TaskScore]:
        """Score the model before the first step, or take what is known of it; `heed` as in `TaskModel`."""
        if self._base is None:
            started = time.perf_counter()
            model = dataclasses.replace(self._model, heed=heed)
            scores = self._run(model)
            self._base = scores, time.perf_counter() - started
        else:
            _LOG.info("The base model's task scores are known (%s).", self._key[:12])
        scores, seconds = self._base
        record = {
            "key": self._key,
            "seconds": round(seconds, 3),
            "scores": [one.to_plain() for one in scores],
        }

        def keep() -> None:
            for path in (self._path, self._cache):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, sealed_text(record))

        self._model.policy.mesh.from_first(keep)
        return scores

    def measure(self, step: int, heed: Callable[[], None] = lambda: None) -> list[TaskScore]:
        """Score the model that is loaded, once after each step.

        Args:
            heed: As in `TaskModel`.
        """
        if self._newest is None or self._newest[0] != step:
            model = dataclasses.replace(self._model, heed=heed)
            self._newest = step, self._run(model)
        return self._newest[1]

    def _run(self, model: TaskModel) -> list[TaskScore]:
        of_tasks = [] if self.loaded is None else run_tasks(self.loaded, model, self._tokenizer)
        return [*of_tasks, *(score for one in self._asked for score in one.run(model, self._tokenizer))]

    def measure_tuned(self, step: int, heed: Callable[[], None] = lambda: None) -> list[TaskComparison]:
        """Score the model that is loaded and return it beside the base; `heed` as in `TaskModel`."""
        if self._base is None:
            _LOG.warning(
                "No task scores: this run began before its base was scored. Run palimpsest evaluate, which scores both."
            )
            return []
        return compare_scores(self._base[0], self.measure(step, heed))


def _read(path: Path, key: str) -> Kept | None:
    """Return kept scores; None where there are none, or those of other tasks or another model."""
    try:
        record = read_sealed(path)
        if record["key"] != key:
            return None
        return [TaskScore(**score) for score in record["scores"]], float(record["seconds"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        _LOG.warning("%s cannot be read (%s): the base is scored anew.", path, error)
        return None
