"""Keys that say one thing in several ways, of which one counts: what a person gives replaces what a group chose.

The line between them: words of the command line, then files of a person's own (those that hydra.searchpath leads to),
then the files that ship. Two given at one place are for the person to decide.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from omegaconf import DictConfig, OmegaConf

from trainer.config.model import ModelKind
from trainer.config.train import GgufType
from trainer.config.tune import ALL_LINEAR
from trainer.errors import ConfigError

_SOURCE = "data.sources.NAME"


class Hand(IntEnum):
    """Who gave a value; the higher one wins."""

    group = 0
    own_file = 1
    command_line = 2


_SHOWN = {Hand.own_file: "of your own file", Hand.command_line: "of the command line"}


class Hands:
    """Tells who gave a key."""

    def __init__(self, typed: Collection[str], own: Callable[[], Collection[str]] = tuple) -> None:
        """Take the keys of the command line, and how to find those of files of a person's own, once they matter."""
        self._typed = frozenset(typed)
        self._own = functools.cache(own)

    def __call__(self, key: str) -> Hand:
        """Return who gave it last."""
        if key in self._typed:
            return Hand.command_line
        return Hand.own_file if key in self._own() else Hand.group


@dataclass(frozen=True, slots=True)
class Exclusive:
    """Keys of which one counts, each with its value where it is left open."""

    keys: Mapping[str, Any]
    goes_along: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Keys that mean nothing once this one is left open."""
    first_counts: bool = False
    """Where several are given the first of them counts; otherwise the config check refuses them."""
    stands_beside: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Values of a key that exclude nothing."""


EXCLUSIVE = (
    Exclusive({"train.max_steps": None, "train.max_epochs": None, "train.max_tokens": None}),
    Exclusive(
        {f"{_SOURCE}.path": None, f"{_SOURCE}.dataset": None},
        {f"{_SOURCE}.dataset": {"subset": None, "revision": None, "split": "train"}},
    ),
    Exclusive(
        {"model.kind": ModelKind.pretrained, "model.path": ""},
        first_counts=True,
        stands_beside={"model.kind": (ModelKind.random,)},
    ),
    Exclusive({"replay.ratio": None, "replay.shift": None}, first_counts=True),
    Exclusive({"schedule.warmup_steps": None, "schedule.warmup_frac": 0.01}, first_counts=True),
    Exclusive({"tune.target_pattern": None, "tune.target": [ALL_LINEAR]}, first_counts=True),
    Exclusive({"plan.gpu_gib": None, "cluster.gpu_gib": None}, first_counts=True),
    Exclusive({"export.adapters": [], "export.alpha": 1.0}, {"export.adapters": {"weights": []}}),
    Exclusive({"export.adapters": [], "export.interpolate": None}, {"export.adapters": {"weights": []}}),
    Exclusive({"export.interpolate": None, "export.gguf": GgufType.none}),
)
"""All of them. Those that are refused together: trainer/config/check.py and check_export.py."""


def partners(key: str) -> list[str]:
    """Return the keys that say the same as a key of the schema in another way."""
    found = [other for one in EXCLUSIVE if key in one.keys for other in one.keys if other != key]
    return list(dict.fromkeys(found))


def touches(key: str) -> bool:
    """Tell whether a key is one of those, or holds one."""
    known = [other.split(".") for one in EXCLUSIVE for other in one.keys]
    parts = key.split(".")
    return any(_is_like(parts, pattern[: len(parts)]) for pattern in known)


def settle(config: DictConfig, hands: Hands) -> Iterator[str]:
    """Leave open what is excluded by a person's word, in place; yield a line about each.

    Raises:
        ConfigError: A person gave two at one place, of which one would do nothing.
    """
    for one in EXCLUSIVE:
        for name in _entries(config, next(iter(one.keys))):
            yield from _settle_one(config, one, name, hands)


def _settle_one(config: DictConfig, one: Exclusive, name: str, hands: Hands) -> Iterator[str]:
    place = {key.replace("NAME", name): key for key in one.keys}
    given = [key for key, of in place.items() if _is_given(config, key, one, of)]
    if len(given) < 2:
        return
    by = {key: hands(key) for key in given}
    most = max(by.values())
    first = [key for key in given if by[key] is most]
    if most is Hand.group or (one.first_counts and given[0] in first and len(first) == 1):
        return
    if one.first_counts and len(first) > 1:
        raise ConfigError(
            f"`{first[1]}` must be left out with {_shown(config, first[0])}, but is {_value(config, first[1])} "
            "instead. Leave one of them out."
        )
    for key in (key for key in given if by[key] < most):
        yield (
            f"{_shown(config, first[0])} {_SHOWN[most]} takes the place of {_shown(config, key)}"
            f"{'' if by[key] is Hand.group else ' ' + _SHOWN[by[key]]}."
        )
        for also, left in one.goes_along.get(place[key], {}).items():
            beside = f"{key.rpartition('.')[0]}.{also}"
            if hands(beside) < most:
                OmegaConf.update(config, beside, left, merge=False)
        OmegaConf.update(config, key, one.keys[place[key]], merge=False)


def _entries(config: DictConfig, key: str) -> list[str]:
    """Return the names that NAME stands for in a key; one empty name where it has none."""
    mapping, has_names, _ = key.partition(".NAME.")
    return [str(name) for name in OmegaConf.select(config, mapping)] if has_names else [""]


def _is_given(config: DictConfig, key: str, one: Exclusive, of: str) -> bool:
    value = OmegaConf.select(config, key)
    return value != one.keys[of] and value not in one.stands_beside.get(of, ())


def _shown(config: DictConfig, key: str) -> str:
    return f"{key}={_value(config, key)}"


def _value(config: DictConfig, key: str) -> str:
    value = OmegaConf.select(config, key)
    return str(getattr(value, "name", value))


def _is_like(parts: list[str], pattern: list[str]) -> bool:
    return len(parts) == len(pattern) and all(
        part == wanted or wanted == "NAME" for part, wanted in zip(parts, pattern, strict=True)
    )
