"""Entries of mappings on the command line: one rule for every mapping of the schema, the same as in a file.

`data.sources.new.path=x`, `data.sources.new={path: x}` and `data.sources={new: {path: x}}` say the same; what is given
is merged into what is there.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Iterator
from typing import Any, cast

from trainer.config.kinds import kind_problems
from trainer.config.schema import RunConfig
from trainer.errors import ConfigError


def is_entry(override: str) -> bool:
    """Tell whether an override gives a mapping, or something below one."""
    key = key_of(override)
    return any(key == mapping or key.startswith(f"{mapping}.") for mapping in mapping_keys())


def is_removal(override: str) -> bool:
    """Tell whether an override removes an entry of a mapping, in Hydra's way: ~gate.sets.general."""
    return (
        override.startswith("~")
        and "=" not in override
        and key_of(override).rpartition(".")[0] in mapping_keys()
    )


def key_of(override: str) -> str:
    """Return the key of an override without Hydra's signs."""
    return override.partition("=")[0].lstrip("+~")


def unreadable(word: str) -> ConfigError:
    """Return the sentence about a word that is no KEY=VALUE."""
    key = key_of(word) or word
    return ConfigError(
        f"`{key}` must be given as KEY=VALUE, but the command line has '{word}' instead. Quote the value."
    )


def check_values(config: RunConfig) -> None:
    """Raise when a section or list is none, or a mapping of plain values holds another; OmegaConf lets it pass.

    Raises:
        ConfigError: Names the key.
    """
    for found in kind_problems(config):
        raise ConfigError(found.sentence)
    for key in mapping_keys():
        mapping: Any = config
        for part in key.split("."):
            mapping = getattr(mapping, part)
        for name, value in mapping.items() if key != "zero.extra" else ():
            if isinstance(value, dict | list):
                kind = "mapping" if isinstance(value, dict) else "list"
                raise ConfigError(
                    f"`{key}.{name}` must be one value, but is a {kind} instead. Set {key}.{name}=VALUE."
                )


@functools.cache
def mapping_keys() -> tuple[str, ...]:
    """Return the dotted key of every field of the schema that is a mapping."""
    return tuple(_mappings(RunConfig, ""))


def _mappings(cls: type[Any], prefix: str) -> Iterator[str]:
    hints = typing.get_type_hints(cls)
    for spec in dataclasses.fields(cls):
        hint = hints[spec.name]
        if typing.get_origin(hint) is dict:
            yield f"{prefix}{spec.name}"
        elif dataclasses.is_dataclass(hint):
            yield from _mappings(cast(type[Any], hint), f"{prefix}{spec.name}.")
