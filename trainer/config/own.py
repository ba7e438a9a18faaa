"""Files of a person's own win over the files that ship, whichever group comes later."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from trainer.config.describe import as_word
from trainer.config.options import Option, group_options, own_options, shipped_options
from trainer.errors import ConfigError

DEBUG = "debug"
"""A group whose options are asked for to change what the others say."""


def chosen_options(folders: Sequence[Path], paths: Sequence[str]) -> tuple[Option, ...]:
    """Return the options of a person's folders that are chosen, in the order in which they apply.

    Keys that a chosen option of `debug` sets are left to it.


    Args:
        paths: GROUP/OPTION of all that is chosen, in that order.
    Raises:
        ConfigError: One has the name of an option that ships, which Hydra would take instead.
    """
    found = {f"{one.group}/{one.name}": one for folder in reversed(folders) for one in own_options(folder)}
    chosen = [found[path] for path in dict.fromkeys(paths) if path in found]
    shipped = group_options()
    for one in chosen:
        if one.name in shipped[one.group]:
            raise ConfigError(
                f"`{one.word}` must be the name of one option, but is that of one that ships and of one in "
                f"hydra.searchpath instead, which would not be read. Give {one.group}/{one.name}.yaml another name."
            )
    kept = {
        key
        for one in shipped_options()
        if f"{DEBUG}/{one.name}" in paths and one.group == DEBUG
        for key in one.values
    }
    return tuple(
        dataclasses.replace(one, values={key: value for key, value in one.values.items() if key not in kept})
        for one in chosen
    )


def keep_own(
    config: DictConfig, own: Sequence[Option], typed: Callable[[], Collection[str]]
) -> Iterator[str]:
    """Give keys what files of a person's own say where one that ships came later, in place; yield a line about each.

    Args:
        typed: Returns the keys that words of the command line give, once they matter.
    """
    wanted = {key: value for one in own for key, value in one.values.items() if value != {}}
    for key, value in wanted.items():
        before = raw(config, key)
        OmegaConf.update(config, key, value, merge=True)
        if raw(config, key) == before:
            continue
        if key in typed():
            OmegaConf.update(config, key, before, merge=True)
        else:
            yield f"{key}={as_word(value)} of your own file takes the place of {key}={as_word(before)}."


def raw(config: DictConfig, key: str) -> Any:
    """Return what a key holds, interpolations as they are written."""
    above, _, leaf = key.rpartition(".")
    parent = OmegaConf.select(config, above) if above else config
    node = parent._get_node(leaf) if isinstance(parent, DictConfig) else None
    if OmegaConf.is_config(node):
        return OmegaConf.to_container(cast(Any, node), resolve=False)
    return None if node is None else cast(Any, node)._value()
