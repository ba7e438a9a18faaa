"""Sections, mappings and lists are what the schema says: OmegaConf lets a reference to anything take their place."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Any

from trainer.config.rule import Problem, observed, said


def kind_problems(section: Any, prefix: str = "") -> Iterator[Problem]:
    """Yield a problem for every section, mapping and list of a tree of dataclasses that is something else."""
    hints = typing.get_type_hints(type(section))
    for field in dataclasses.fields(section):
        yield from _problems(f"{prefix}{field.name}", hints[field.name], getattr(section, field.name))


def _problems(key: str, hint: Any, value: Any) -> Iterator[Problem]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None:
            return
        (hint,) = (one for one in typing.get_args(hint) if one is not types.NoneType)
    origin = typing.get_origin(hint) or hint
    if dataclasses.is_dataclass(origin):
        if isinstance(value, typing.cast(type, origin)):
            yield from kind_problems(value, f"{key}.")
        else:
            yield _other(key, "a mapping", value)
    elif origin is dict:
        if not isinstance(value, dict):
            yield _other(key, "a mapping", value)
            return
        for name, one in value.items():
            yield from _problems(f"{key}.{name}", typing.get_args(hint)[1], one)
    elif origin is list:
        if not isinstance(value, list):
            yield _other(key, "a list", value)
            return
        of_one = typing.get_args(hint)[0]
        is_nested = (typing.get_origin(of_one) or of_one) in (list, dict, Any)
        if not is_nested and any(isinstance(one, list | dict) for one in value):
            yield said(key, observed(key, "a list of values", "one of lists", f"Set {key}=[VALUE, VALUE]."))


def _other(key: str, kind: str, value: Any) -> Problem:
    state = repr(value) if isinstance(value, str | int | float) else "another section or list"
    fix = f"Set the keys below {key}." if kind == "a mapping" else f"Set {key}=[VALUE]."
    return said(key, observed(key, kind, state, fix))
