"""Settles `data.packing=auto`: whether documents share the rows of a model, before any data is packed.

Then `data.share_prompts`, which depends on it.
"""

from __future__ import annotations

from pathlib import Path

from trainer.config.data import PackingMode
from trainer.config.schema import RunConfig
from trainer.config.snapshot import packed_as_begun, with_packing_mode
from trainer.errors import ConfigError
from trainer.model.carry import takes_no_pairs, why_in_rows
from trainer.model.load import read_config
from trainer.model.resolve import resolve_model
from trainer.run.sharing import with_sharing


def with_packing(config: RunConfig, says: bool = True) -> RunConfig:
    """Return the configuration with `data.packing` and `data.share_prompts` as the run began, else by the model.

    Prints what was chosen. Reads the model's config.json; the model of `tiny` and `embedded` is made.

    Raises:
        ModelError: There is no such configuration.
        ConfigError: Documents shall share rows or answers their prompt, which the model cannot do.
    """
    return with_sharing(_with_rows(config, says), says)


def _with_rows(config: RunConfig, says: bool) -> RunConfig:
    """Return the configuration with `data.packing` settled."""
    config = packed_as_begun(config, Path(config.run_dir))
    if config.data.packing is PackingMode.none:
        return config
    asked = [f"data.sources.{name}.packing" for name, source in config.data.sources.items() if source.packing]
    hf_config = read_config(resolve_model(config.model, Path(config.data.cache_dir)), config.model)
    why = why_in_rows(hf_config)
    is_packed = config.data.packing is PackingMode.packed
    if why is not None and (is_packed or asked) and takes_no_pairs(hf_config):
        raise ConfigError(
            f"`data.packing` must be none for this model, but is packed instead: {why}. Set data.packing=none"
            + (f", and {', '.join(asked)}=null." if asked else ".")
        )
    if is_packed or why is None:
        return with_packing_mode(config, PackingMode.packed)
    if asked:
        if says:
            print(
                f"data.packing=packed, as {', '.join(asked)} asks, though {why}. That is looked at before the first "
                "step.",
                flush=True,
            )
        return with_packing_mode(config, PackingMode.packed)
    if says:
        print(
            f"data.packing=none: {why}, so every document is a row of its own, beside others of its length.",
            flush=True,
        )
    return with_packing_mode(config, PackingMode.none)
