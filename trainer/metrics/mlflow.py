"""The only place that imports mlflow, and only when a run wants it.

Works with mlflow-skinny. A run directory's own database needs SQLAlchemy and Alembic, a server does not.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from trainer.config.check_log import tracked_name
from trainer.config.log import MlflowConfig
from trainer.metrics.redact import redact
from trainer.metrics.tracker import Bookmark, Conclusion, Numbers, RunCard

_LOG = logging.getLogger(__name__)
_BAD_STATUSES = {"failed", "crashed", "non_finite"}
_PARAM_CHARS = 500
"""Longest value of a parameter that every MLflow server takes."""
_PARAMS_A_BATCH = 100
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15"}
"""A request is given up after so many seconds; ours is the retry. MLflow's own takes up to half an hour."""


class MlflowTracker:
    """Sends numbers to one MLflow run.

    Ranks:
        Rank 0 only.
    """

    takes_back: ClassVar = False

    def __init__(self, client: Any, run_id: str, ended_as: str = "RUNNING") -> None:
        """Take a client and the run, which is running; `ended_as` is what it was before."""
        self._client = client
        self._run_id = run_id
        self._ended_as = ended_as

    def write(self, step: int, numbers: Numbers) -> None:
        """Log the numbers of one step in one request."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now_ms, step) for name, value in numbers.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def conclude(self, found: Conclusion) -> None:
        """Log the numbers, the words as tags, and the table as the artifact forgetting.md."""
        self.write(found.step, found.numbers)
        for name, text in found.words.items():
            self._client.set_tag(self._run_id, name, text[:5000])
        self._client.log_text(self._run_id, found.markdown, "forgetting.md")

    def close(self, status: str | None) -> None:
        """End the run; one that was stopped and will be resumed is KILLED until then."""
        if status is None:
            self._client.update_run(self._run_id, status=self._ended_as)
            return
        ended = {"preempted": "KILLED", **dict.fromkeys(_BAD_STATUSES, "FAILED")}.get(status, "FINISHED")
        self._client.set_tag(self._run_id, "status", status)
        self._client.set_terminated(self._run_id, ended)


def mlflow_uri(options: MlflowConfig, run_dir: Path) -> str:
    """Return the server or database that a run goes to."""
    own = f"sqlite:///{run_dir.resolve() / 'mlflow' / 'mlflow.db'}"
    return options.uri or os.environ.get("MLFLOW_TRACKING_URI") or own


def open_mlflow(options: MlflowConfig, card: RunCard, bookmark: Bookmark) -> MlflowTracker:
    """Begin a run, or go on in the one of the bookmark."""
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    # Alembic's lines about tables are of no use to anybody here.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    from mlflow.tracking import MlflowClient

    uri = mlflow_uri(options, card.run_dir)
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    client = MlflowClient(tracking_uri=uri)
    if bookmark.run_id is not None and (before := _go_on(client, bookmark.run_id)) is not None:
        _LOG.info("mlflow: going on in run %s of %s", bookmark.run_id, _shown(uri))
        return MlflowTracker(client, bookmark.run_id, before)
    experiment = options.experiment or card.project
    found = client.get_experiment_by_name(experiment)
    if found is not None:
        experiment_id = found.experiment_id
    else:
        # A database of ours would put artifacts below the working directory.
        place = str(card.run_dir.resolve() / "mlflow" / "artifacts") if uri.startswith("sqlite:") else None
        experiment_id = client.create_experiment(experiment, artifact_location=place)
    tags = dict.fromkeys(card.tags, "true") | ({"group": card.group} if card.group else {})
    run_id = client.create_run(experiment_id, run_name=card.name, tags=tags).info.run_id
    bookmark.begin(run_id)
    for batch in _batches(card.config):
        client.log_batch(run_id, params=batch)
    _LOG.info("mlflow: run %s of experiment %s in %s", run_id, experiment, _shown(uri))
    return MlflowTracker(client, run_id)


def _go_on(client: Any, run_id: str) -> str | None:
    """Set a run of an earlier attempt to running and return its status before; None where it is not there any more."""
    from mlflow.exceptions import MlflowException

    info = None
    try:
        info = client.get_run(run_id).info
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    if info is None or info.lifecycle_stage != "active":
        _LOG.warning("mlflow: run %s was deleted; a new one is begun.", run_id)
        return None
    client.update_run(run_id, status="RUNNING")
    return str(info.status)


def _batches(config: Mapping[str, Any]) -> Iterator[list[Any]]:
    from mlflow.entities import Param

    flat = list(_flat(config))
    for start in range(0, len(flat), _PARAMS_A_BATCH):
        yield [Param(key, value[:_PARAM_CHARS]) for key, value in flat[start : start + _PARAMS_A_BATCH]]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        name = f"{prefix}{tracked_name(str(key))}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        else:
            yield name, str(value)


def _shown(uri: str) -> str:
    """Return an address without what may be a password."""
    return str(redact({"address": uri})["address"])
