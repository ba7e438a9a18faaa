"""Settles `data.packing=auto`: whether documents share the rows of a model, before any data is packed."""

from __future__ import annotations

from pathlib import Path

from trainer.config.data import PackingMode
from trainer.config.schema import RunConfig
from trainer.config.snapshot import packed_as_begun, with_packing_mode
from trainer.model.carry import carried_by
from trainer.model.load import read_config
from trainer.model.resolve import resolve_model


def with_packing(config: RunConfig, says: bool = True) -> RunConfig:
    """Return the configuration with `data.packing` as the run began, else as the model needs it; print that.

    Reads the model's config.json; the model of `tiny` and `embedded` is made.

    Raises:
        ModelError: There is no such configuration.
    """
    config = packed_as_begun(config, Path(config.run_dir))
    if config.data.packing is not PackingMode.auto:
        return config
    asked = [f"data.sources.{name}.packing" for name, source in config.data.sources.items() if source.packing]
    source = resolve_model(config.model, Path(config.data.cache_dir))
    carried = carried_by(read_config(source, config.model))
    if carried is None:
        return with_packing_mode(config, PackingMode.packed)
    if asked:
        if says:
            print(
                f"data.packing=packed, as {', '.join(asked)} asks, though {carried} carry something from one document "
                "to the next. That is looked at before the first step.",
                flush=True,
            )
        return with_packing_mode(config, PackingMode.packed)
    if says:
        print(
            f"data.packing=none: {carried} carry something from one document to the next, so every document is a row "
            "of its own, beside others of its length.",
            flush=True,
        )
    return with_packing_mode(config, PackingMode.none)
