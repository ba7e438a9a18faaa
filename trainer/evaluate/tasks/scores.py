"""The scores of benchmark tasks: the base model's, kept by what they belong to, beside the tuned one's.

Collective: every rank calls everything here in the same order; rank 0 writes.
"""

from __future__ import annotations

import logging
from pathlib import Path

from trainer.config.snapshot import write_atomic
from trainer.data.store.prepared import digest_of
from trainer.evaluate.base import BaseIdentity
from trainer.evaluate.tasks.batches import TaskModel
from trainer.evaluate.tasks.harness import LoadedTasks, run_tasks, tasks_digest
from trainer.evaluate.tasks.score import TaskComparison, TaskScore, compare_scores
from trainer.model.tokenizer import Tokenizer
from trainer.runtime.seal import read_sealed, sealed_text

_LOG = logging.getLogger(__name__)
BASE_FILE = "base_tasks.json"


class TaskScores:
    """Keeps what tasks said of the base model and runs them on the tuned one."""

    def __init__(
        self,
        run_dir: Path,
        cache_dir: Path,
        loaded: LoadedTasks,
        model: TaskModel,
        tokenizer: Tokenizer,
        base: BaseIdentity,
    ) -> None:
        """Find the base's scores: of this run, or in the cache of another run of the same base and tasks."""
        self._loaded = loaded
        self._model = model
        self._tokenizer = tokenizer
        self._path = run_dir / BASE_FILE

        def find() -> tuple[str, str, list[TaskScore] | None]:
            key = digest_of({"tasks": [base.digest, tokenizer.digest, base.dtype, tasks_digest(loaded)]})
            cache = cache_dir / "evaluations" / f"tasks-{base.shared_key(key)}.json"
            return key, str(cache), _read(self._path, key) or _read(cache, key)

        self._key, cache, self._base = model.policy.mesh.from_first(find)
        self._cache = Path(cache)

    def measure_base(self) -> list[TaskScore]:
        """Score the model before the first step, or take what is known of it."""
        scores: list[TaskScore] | None = self._base
        if scores is None:
            self._base = scores = run_tasks(self._loaded, self._model, self._tokenizer)
        else:
            _LOG.info("The base model's task scores are known (%s).", self._key[:12])
        record = {"key": self._key, "scores": [score.to_plain() for score in scores]}

        def keep() -> None:
            for path in (self._path, self._cache):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, sealed_text(record))

        self._model.policy.mesh.from_first(keep)
        return scores

    def measure_tuned(self) -> list[TaskComparison]:
        """Score the model that is loaded and return it beside the base."""
        if self._base is None:
            _LOG.warning(
                "No task scores: this run began before its base was scored. Run palimpsest evaluate, which scores both."
            )
            return []
        tuned = run_tasks(self._loaded, self._model, self._tokenizer)
        return compare_scores(self._base, tuned)


def _read(path: Path, key: str) -> list[TaskScore] | None:
    """Return kept scores; None where there are none, or those of other tasks or another model."""
    try:
        record = read_sealed(path)
        if record["key"] != key:
            return None
        return [TaskScore(**score) for score in record["scores"]]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        _LOG.warning("%s cannot be read (%s): the base is scored anew.", path, error)
        return None
