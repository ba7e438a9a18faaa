"""The trackers of a run: whether they can be used, checked before ranks start, and their beginning on rank 0."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.config.log import LogConfig, TrackerKind
from trainer.config.rule import Problem, must, problem
from trainer.metrics.delivery import Delivery
from trainer.metrics.mlflow import mlflow_uri, open_mlflow
from trainer.metrics.redact import REMOVED, redact
from trainer.metrics.tensorboard import open_tensorboard
from trainer.metrics.tracker import Bookmark, RunCard, Tracker
from trainer.metrics.trackio import open_trackio
from trainer.metrics.wandb import login_problems, open_wandb

_LOG = logging.getLogger(__name__)


def tracker_problems(log: LogConfig, run_dir: Path, environment: Mapping[str, str]) -> Iterator[Problem]:
    """Yield a problem where a tracker that was asked for has no package or no login; imports none of them.

    Args:
        environment: Variables of the job beside those of this process.
    """
    missing: dict[TrackerKind, str] = {}
    for kind in log.trackers:
        for package in _packages(kind, log, run_dir):
            if importlib.util.find_spec(package) is None:
                missing.setdefault(kind, package)
    if missing:
        names = " and ".join(kind.value for kind in missing)
        extras = [
            "wandb" if one is TrackerKind.wandb else f"'palimpsest-trainer[{one.value}]'" for one in missing
        ]
        lacks = f"there is no package {' and no package '.join(missing.values())}"
        yield problem(
            "log.trackers",
            f"must name trackers that are installed, but {names} {'is' if len(missing) == 1 else 'are'} not: {lacks}. "
            f"Run `pip install {' '.join(extras)}`, or take {names} out of log.trackers.",
        )
    known = {**os.environ, **environment}
    if TrackerKind.wandb in log.trackers:
        yield from login_problems(log.wandb, known)
    if TrackerKind.trackio in log.trackers and log.trackio.space is not None and not _has_hub_token(known):
        rule = "null without a login to the Hugging Face hub"
        yield must("log.trackio.space", rule, log.trackio.space, "Run `hf auth login`, or set HF_TOKEN.")


def begin(log: LogConfig, card: RunCard, resumed_step: int, records: list[dict[str, Any]]) -> list[Delivery]:
    """Begin or go on in every tracker, and tell it what it does not have of `records`; rank 0.

    One that cannot begin is said and left out: the run goes on without it.

    Args:
        resumed_step: Newest step that stands; steps after it come again.
        records: Lines of metrics.jsonl up to that step.
    """
    found = []
    for kind in log.trackers:
        bookmark = Bookmark.read(card.run_dir, kind.value)
        try:
            tracker = _open(kind, log, card, bookmark, resumed_step)
        except Exception as error:
            reason = redact({"reason": f"{type(error).__name__}: {error}"})["reason"]
            _LOG.warning(
                "%s could not begin (%s); the run goes on without it. metrics.jsonl has everything, and the next "
                "attempt sends it.",
                kind.value,
                " ".join(str(reason).split())[:300],
            )
            continue
        delivery = Delivery(kind.value, tracker, bookmark)
        delivery.catch_up(records)
        found.append(delivery)
    return found


def _open(kind: TrackerKind, log: LogConfig, card: RunCard, bookmark: Bookmark, resumed_step: int) -> Tracker:
    match kind:
        case TrackerKind.wandb:
            return open_wandb(log.wandb, card, bookmark)
        case TrackerKind.mlflow:
            return open_mlflow(log.mlflow, card, bookmark)
        case TrackerKind.tensorboard:
            folder = Path(log.tensorboard.dir) if log.tensorboard.dir else card.run_dir / "tensorboard"
            return open_tensorboard(folder, card, bookmark, resumed_step)
        case TrackerKind.trackio:
            return open_trackio(log.trackio, card, bookmark)


def _packages(kind: TrackerKind, log: LogConfig, run_dir: Path) -> tuple[str, ...]:
    """Return what must be importable; mlflow-skinny alone has no database."""
    if kind is TrackerKind.mlflow and not mlflow_uri(log.mlflow, run_dir).startswith(("http", "databricks")):
        return "mlflow", "sqlalchemy", "alembic"
    return (kind.value,)


def _has_hub_token(environment: Mapping[str, str]) -> bool:
    home = environment.get("HF_HOME") or "~/.cache/huggingface"
    places = (environment.get("HF_TOKEN_PATH") or f"{home}/token", f"{home}/stored_tokens")
    return bool(environment.get("HF_TOKEN")) or any(Path(place).expanduser().is_file() for place in places)


def run_card(log: LogConfig, run_dir: Path, name: str, config: Mapping[str, Any]) -> RunCard:
    """Return what trackers are told of a run, without its secrets."""
    cluster = dict(config.get("cluster") or {})
    # A value of a variable needs neither a name nor a look to be a secret; what names the environment has none in it.
    variables = dict(cluster.get("environment") or {})
    shown = {key: value if "${oc.env:" in str(value) else REMOVED for key, value in variables.items()}
    config = {**config, "cluster": {**cluster, "environment": shown}} if variables else config
    labels = redact({"name": name, "project": log.project, "group": log.group, "tags": log.tags})
    return RunCard(
        run_dir, labels["name"], labels["project"], labels["group"], tuple(labels["tags"]), redact(config)
    )
