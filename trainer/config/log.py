"""Config section for what is told of a run: console, metrics.jsonl and trackers."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class TrackerKind(Enum):
    """Where figures of a run can be sent, beside metrics.jsonl. Each is an extra of the same name; wandb is there."""

    wandb = "wandb"
    """wandb.ai or a server of your own, or files for `wandb sync`."""
    mlflow = "mlflow"
    """A tracking server, or a database in the run directory."""
    tensorboard = "tensorboard"
    """Event files in the run directory."""
    trackio = "trackio"
    """A local database, or a Space of the hub."""


class WandbMode(Enum):
    """Where wandb runs go."""

    auto = "auto"
    """Online with a key and a network, else offline."""
    online = "online"
    """Sent while it runs, offline without a network. Needs a key."""
    offline = "offline"
    """Files for `wandb sync`."""


@dataclass
class WandbConfig:
    """wandb. The project, the group and the tags are those of the log section."""

    mode: WandbMode = WandbMode.auto
    """Whether figures are sent while it runs. Never asks for a login."""
    entity: str | None = None
    """wandb team or user."""


@dataclass
class MlflowConfig:
    """MLflow. A user, password or token is read from the environment, as MLflow does."""

    uri: str | None = None
    """Server or database: http(s)://..., databricks, postgresql://..., mysql://..., sqlite:////absolute/path.db. null:
    the environment variable MLFLOW_TRACKING_URI, else RUN_DIR/mlflow/mlflow.db, which needs no network."""
    experiment: str | None = None
    """Name of the experiment; null: log.project."""


@dataclass
class TensorboardConfig:
    """TensorBoard's event files."""

    dir: str | None = None
    """Folder of the event files, one for each run; null: RUN_DIR/tensorboard."""


@dataclass
class TrackioConfig:
    """trackio, local or on a Space."""

    dir: str | None = None
    """Folder of its database, which several runs may share; null: the environment variable TRACKIO_DIR, else
    RUN_DIR/trackio."""
    space: str | None = None
    """Hugging Face Space that shows the runs, USER/NAME; null: nothing leaves this machine."""


@dataclass
class LogConfig:
    """Console, metrics.jsonl and trackers."""

    every_steps: int = 1
    """Optimizer steps between log lines."""
    progress: bool = True
    """Progress bar on a terminal; plain lines are printed either way."""
    trackers: list[TrackerKind] = field(default_factory=list)
    """Any of wandb, mlflow, tensorboard, trackio, several at once: log.trackers=[wandb,tensorboard]."""
    project: str = "palimpsest"
    """Project of wandb and trackio, and experiment of MLflow."""
    group: str | None = None
    """Group of runs in wandb and trackio, and a tag in MLflow; a sweep sets it to its name."""
    tags: list[str] = field(default_factory=list)
    """Tags of the run in wandb and MLflow."""
    wandb: WandbConfig = field(default_factory=WandbConfig)
    mlflow: MlflowConfig = field(default_factory=MlflowConfig)
    tensorboard: TensorboardConfig = field(default_factory=TensorboardConfig)
    trackio: TrackioConfig = field(default_factory=TrackioConfig)
    peak_tflops: float | None = None
    """Dense bf16 peak of one GPU for MFU, when the table does not know it."""
