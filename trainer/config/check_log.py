"""Rules about logs and trackers. Pure but for the environment that a tracker itself reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

from trainer.config.log import LogConfig, MlflowConfig, TrackerKind
from trainer.config.rule import Problem, must, problem

_SERVERS = ("http", "https", "databricks", "postgresql", "mysql", "mssql", "sqlite")


def log_problems(log: LogConfig, sources: Iterable[str]) -> Iterator[Problem]:
    """Yield every broken rule."""
    if log.every_steps < 1:
        yield must("log.every_steps", "at least 1", log.every_steps, "Set 1.")
    names = [kind.value for kind in log.trackers]
    if len(set(names)) < len(names):
        fix = f"Set log.trackers=[{','.join(dict.fromkeys(names))}]."
        yield must("log.trackers", "a list without doubles", f"[{','.join(names)}]", fix)
    if not log.trackers:
        return
    if not log.project.strip() or "/" in log.project:
        yield must("log.project", "a name without '/'", log.project, "Set log.project=palimpsest.")
    if TrackerKind.mlflow in log.trackers:
        yield from _mlflow_problems(log.mlflow)
    space = log.trackio.space
    if (
        TrackerKind.trackio in log.trackers
        and space is not None
        and not re.fullmatch(r"[^/\s]+/[^/\s]+", space)
    ):
        yield must("log.trackio.space", "USER/NAME", space, "Set log.trackio.space=user/trackio.")
    yield from _name_problems(sources)


def tracked_name(key: str) -> str:
    """Return how a key of metrics.jsonl, such as eval/SOURCE, is named in every tracker.

    Letters of ASCII, digits and `_-./` are what all of them take; anything else becomes `_`.
    """
    return re.sub(r"[^A-Za-z0-9_\-./]", "_", key)


def _name_problems(sources: Iterable[str]) -> Iterator[Problem]:
    taken: dict[str, str] = {}
    for name in sources:
        other = taken.setdefault(tracked_name(name), name)
        if other != name:
            yield problem(
                f"data.sources.{name}",
                f"must differ from `data.sources.{other}` in more than signs that trackers do not take, but both are "
                f"'{tracked_name(name)}' there instead. Rename one of them.",
            )


def _mlflow_problems(mlflow: MlflowConfig) -> Iterator[Problem]:
    uri = mlflow.uri
    if mlflow.experiment is not None and not mlflow.experiment.strip():
        yield must("log.mlflow.experiment", "a name or null", mlflow.experiment, "Set null for log.project.")
    if uri is None:
        return
    key = "log.mlflow.uri"
    try:
        parts = urlsplit(uri)
        has_password = parts.password is not None
    except ValueError as error:
        yield must(key, "an address", uri, f"It cannot be read: {error}.")
        return
    scheme = parts.scheme.split("+")[0] or uri
    if scheme not in _SERVERS:
        rule = f"one of {', '.join(name + '://' for name in _SERVERS)}"
        yield must(key, rule, uri, "Folders are given up by MLflow; null is a database in the run directory.")
    elif has_password:
        fix = "Give MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, in the environment."
        yield problem(
            key, f"must hold no password, as it is frozen in config.yaml, but it does instead. {fix}"
        )
    elif scheme == "sqlite" and not uri.partition("://")[2].startswith("//"):
        yield must(
            key, "the whole path of a database after sqlite:///", uri, "Write sqlite:////data/mlflow.db."
        )
    elif scheme in ("http", "https") and not parts.hostname:
        yield must(key, "an address with a host", uri, "Write http://host:5000.")
