"""How what a run has trained is trained on, in words."""

from __future__ import annotations

import shlex
from pathlib import Path

from trainer.config.check_export import exports_adapter
from trainer.config.schema import RunConfig
from trainer.config.tune import EXPERTS, TuneMethod

LENGTH = ("train.max_steps", "train.max_epochs", "train.max_tokens")
"""Keys that say how long a run is; its learning rates are laid out over that."""


def begin_from(config: RunConfig) -> str:
    """Return how another run begins from what this one trained."""
    run_dir = Path(config.run_dir)
    if exports_adapter(config):
        place, merged = shlex.quote(str(run_dir)), shlex.quote(str(run_dir / "merged"))
        if config.tune.method is TuneMethod.lora and not (
            config.tune.modules_to_save or config.model.new_tokens or EXPERTS in config.tune.target
        ):
            return f"let it begin from the adapter (tune.start={place})"
        return (
            f"let it begin from the adapter merged into its base: palimpsest export run_dir={place} "
            f"export.merge=true export.output_dir={merged}, then model.path={merged}"
        )
    export = config.export.output_dir or str(run_dir / "export")
    return f"let it begin from the export (model.path={shlex.quote(export)})"
