"""Whether the base and the tokenizer are those that a run began with."""

from __future__ import annotations

from pathlib import Path

from trainer.config.record import read_inputs, refuse_other_inputs
from trainer.config.schema import RunConfig


def known_base(config: RunConfig, source: str) -> str | None:
    """Return the digest of the base if the run recorded one to compare it with."""
    from trainer.model.digest import base_digest

    recorded = read_inputs(Path(config.run_dir))
    if recorded is None or recorded["base"] is None:
        return None
    return base_digest(config.model, config.tune.quantise, source, config.data.cache_dir)


def refuse_other_model(config: RunConfig, source: str) -> None:
    """Raise when the base or the tokenizer of a run is not what it was trained with.

    Raises:
        DataError: Names what differs.
    """
    from trainer.model.tokenizer import configured_tokenizer

    tokenizer = configured_tokenizer(config.model, source).digest
    refuse_other_inputs(Path(config.run_dir), tokenizer=tokenizer, base=known_base(config, source))
