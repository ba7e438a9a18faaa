"""The root of the configuration. Every YAML file and override is checked against this tree."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from trainer.config.cluster import ClusterConfig
from trainer.config.data import DataConfig
from trainer.config.gate import GateConfig
from trainer.config.log import LogConfig
from trainer.config.model import ModelConfig
from trainer.config.objective import ObjectiveConfig
from trainer.config.optim import OptimConfig, ScheduleConfig, ZeroConfig
from trainer.config.plan import PlanConfig
from trainer.config.replay import ReplayConfig
from trainer.config.sweep import SweepConfig
from trainer.config.synthetic import SyntheticConfig
from trainer.config.train import (
    CheckpointConfig,
    EvaluateConfig,
    ExportConfig,
    TrainConfig,
)
from trainer.config.tune import TuneConfig


class RunKind(Enum):
    """What kind of run the recipe makes: shown in reports, and continued pretraining without replay is warned of.

    Nothing else branches on it: what a run does follows from its sections, which an override may have changed since.
    """

    none = "none"
    """No recipe."""
    full_finetune = "full_finetune"
    """Conversations or pairs, all weights."""
    continued_pretrain = "continued_pretrain"
    """Raw text, all weights."""
    lora = "lora"
    """Conversations or pairs, an adapter."""
    qlora = "qlora"
    """The same on a base in 4 bits."""
    dpo = "dpo"
    """Preferences, all weights."""
    preference_lora = "preference_lora"
    """Preferences, an adapter."""
    reward = "reward"
    """A reward model, all weights."""
    reward_lora = "reward_lora"
    """A reward model, an adapter."""


@dataclass
class RunConfig:
    """One run, complete."""

    name: str = "run"
    """Name of the run in reports, cards, jobs and trackers; the default run directory comes from it. Where only run_dir
    is given, its last part."""
    run_dir: str = "runs/${name}"
    """Directory of the run. A directory that holds another configuration is refused. With -m that of the sweep, in
    which every point has its own."""
    seed: int = 0
    """Seed of the data order and of all random number generators."""
    kind: RunKind = RunKind.none
    """Set by the recipe group."""
    deterministic: bool = False
    """Use deterministic kernels where torch has them; slower."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    log: LogConfig = field(default_factory=LogConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)

    @property
    def gpu_gib(self) -> float | None:
        """Return the memory of a GPU in GiB that the configuration names; None where it names none."""
        return self.plan.gpu_gib or self.cluster.gpu_gib

    @property
    def asks_gate_to_export(self) -> bool:
        """Tell whether an export of a checkpoint asks the gate; one of several adapters or of a blend does not."""
        is_of_checkpoint = not self.export.adapters and self.export.interpolate is None
        return self.gate.has_rules and is_of_checkpoint and not self.export.despite_gate
