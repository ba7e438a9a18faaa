"""Config sections for replay."""

from __future__ import annotations

from dataclasses import dataclass, field

from trainer.config.generate import GenerateConfig


@dataclass
class ReplayConfig:
    """Replay of what the base model knew."""

    generate: GenerateConfig = field(default_factory=GenerateConfig)
