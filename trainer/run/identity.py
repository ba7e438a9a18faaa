"""Whether the data, the base and the tokenizer are those that a run began with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from trainer.config.record import read_inputs, refuse_other_inputs
from trainer.config.schema import RunConfig
from trainer.data.types import TokenizerLike
from trainer.errors import DataError
from trainer.runtime.say import say

OF_NO_MATTER = (
    "`data.sources.{name}` holds other data by now than the run read. Nothing of it is in an export: it is made from "
    "the checkpoint and the base."
)


def known_base(config: RunConfig, source: str) -> str | None:
    """Return the digest of the base if the run recorded one to compare it with."""
    from trainer.model.digest import base_digest

    recorded = read_inputs(Path(config.run_dir))
    if recorded is None or recorded["base"] is None:
        return None
    return base_digest(config.model, config.tune.quantise, source, config.data.cache_dir)


def refuse_others(config: RunConfig, source: str, reads_data: bool = True) -> None:
    """Raise when the data, the base or the tokenizer of a run is not what it was trained with.

    Data that is not on this machine is not compared, which is said.

    Args:
        reads_data: False where nothing is worked out from data: then other data is only said, too.
    Raises:
        DataError: Names what differs.
    """
    from trainer.model.tokenizer import configured_tokenizer

    tokenizer = configured_tokenizer(config.model, source)
    data, untold = data_now(config, tokenizer)
    if not reads_data:
        untold += [OF_NO_MATTER.format(name=name) for name in data]
        data = {}
    for line in untold:
        say(Console(), line)
    run_dir = Path(config.run_dir)
    refuse_other_inputs(run_dir, data, tokenizer.digest, known_base(config, source))


def data_now(config: RunConfig, tokenizer: TokenizerLike) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Describe the sources that a run read as they stand; and say in a sentence each which of them nobody can tell.

    Only their content is looked at: with which options they are read is what the configuration says.
    """
    from trainer.data.store.prepared import origin_now

    recorded = read_inputs(Path(config.run_dir))
    found, untold = {}, []
    for name, source in config.data.sources.items():
        before = {} if recorded is None else recorded["data"].get(name, {})
        if not before:
            continue
        try:
            origin, why = origin_now(name, source, config.data, tokenizer), "it would have to be fetched"
        except DataError as error:
            origin, why = None, str(error)
        if origin is None:
            untold.append(f"`data.sources.{name}` is not compared with what the run read: {why.rstrip('.')}.")
        elif origin != before["origin"]:
            found[name] = before | {"origin": origin, "store": None}
    return found, untold
