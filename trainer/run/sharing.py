"""Settles `data.share_prompts` where it is left open: whether a pack holds the prompt of a pair once."""

from __future__ import annotations

from pathlib import Path

from trainer.config.check_sharing import KEY, holds_pairs, refusal, why_not_asked
from trainer.config.schema import RunConfig
from trainer.config.snapshot import shared_as_begun, with_share_prompts
from trainer.errors import ConfigError
from trainer.model.carry import why_not_shared
from trainer.model.load import read_config, router_loss
from trainer.model.resolve import resolve_model


def with_sharing(config: RunConfig, says: bool = True) -> RunConfig:
    """Return the configuration with `data.share_prompts` as the run began, else as the model can; print that.

    A configuration without pairs stays as it is. `data.packing` is settled before. Reads the model's config.json.

    Raises:
        ModelError: There is no such configuration.
        ConfigError: Prompts shall be shared, which the model cannot do.
    """
    if not holds_pairs(config.data):
        return config
    config = shared_as_begun(config, Path(config.run_dir))
    asked = config.data.share_prompts
    if asked is False:
        return config
    why = why_not_asked(config) or _why_not_model(config)
    if asked:
        if why is not None:
            raise ConfigError(refusal(why).sentence)
        return config
    if says:
        print(
            f"{KEY}=true: a pack holds the prompt of a pair once, and the two answers behind it do not see each other."
            if why is None
            else f"{KEY}=false: {why}, so a pair is two documents.",
            flush=True,
        )
    return with_share_prompts(config, why is None)


def _why_not_model(config: RunConfig) -> str | None:
    hf_config = read_config(resolve_model(config.model, Path(config.data.cache_dir)), config.model)
    if router_loss(hf_config):
        return "the model's loss of routers is of every token, and those of a prompt would count once"
    return why_not_shared(hf_config)
