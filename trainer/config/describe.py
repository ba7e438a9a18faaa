"""What every key of the configuration means, out of the docstrings beside the fields: the one parser of them.

`palimpsest COMMAND --help`, `explain`, `schema` and `completion` print it, and so may a page of documentation. Imports
neither hydra nor omegaconf.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, cast

from trainer.config.schema import RunConfig

NAME = "NAME"
"""Stands for the name of an entry of a mapping, such as that of a source."""
_UNITS = {
    "_gb_per_s": "10^9 bytes a second",
    "_tflops": "10^12 operations a second",
    "bucket_size": "elements",
    "group_size": "elements",
    "micro_batch_size": "packs",
    "num_nodes": "nodes",
    "ranks_per_node": "ranks",
    "gpus_per_node": "GPUs",
    "seq_len": "tokens",
    "num_tokens": "tokens",
    "_tokens": "tokens",
    "_steps": "optimizer steps",
    "_epochs": "passes",
    "_packs": "packs",
    "_layers": "decoder layers",
    "_chars": "characters",
    "_documents": "documents",
    "_nats": "nats",
    "_frac": "share, 0 to 1",
    "_gib": "GiB",
    "_gb": "10^9 bytes",
    "_min": "minutes",
    "_s": "seconds",
}
"""How names end, and what is counted then: units stand in names."""
_KINDS: dict[Any, str] = {int: "whole number", float: "number", bool: "true or false", str: "text"}
_PLURAL = {int: "whole numbers", float: "numbers", str: "texts"}


@dataclass(frozen=True, slots=True)
class KeyField:
    """One key of the configuration."""

    key: str
    """Dotted; NAME is the name of an entry of a mapping."""
    meaning: str
    hint: Any
    """Its type, without `| None`."""
    is_optional: bool
    """Whether null may be given."""
    default: Any

    @property
    def unit(self) -> str:
        """Return what a number counts; nothing where its name does not say it."""
        if self.hint not in (int, float):
            return ""
        return next((unit for end, unit in _UNITS.items() if self.key.endswith(end)), "")

    @property
    def kind(self) -> str:
        """Return the type in words."""
        inner = typing.get_args(self.hint)
        if isinstance(self.hint, type) and issubclass(self.hint, Enum):
            word = "one of " + ", ".join(member.name for member in self.hint)
        elif typing.get_origin(self.hint) is list:
            is_enum = isinstance(inner[0], type) and issubclass(inner[0], Enum)
            of = ", ".join(m.name for m in inner[0]) if is_enum else _PLURAL.get(inner[0], "values")
            word = f"list of {of}"
        elif typing.get_origin(self.hint) is dict:
            of = "sections" if dataclasses.is_dataclass(inner[1]) else _PLURAL.get(inner[1], "values")
            word = f"mapping of names to {of}"
        else:
            word = _KINDS[self.hint]
        return f"{word}, or null" if self.is_optional else word

    @property
    def choices(self) -> dict[str, str]:
        """Return the allowed words and what each means; none where any value may be given."""
        inner = [arg for arg in (self.hint, *typing.get_args(self.hint)) if isinstance(arg, type)]
        found = next((arg for arg in inner if issubclass(arg, Enum)), None)
        return {} if found is None else {m.name: _texts_of(found).get(m.name, "") for m in found}

    @property
    def default_text(self) -> str:
        """Return the default as the command line takes it."""
        return as_word(self.default)


@dataclass(frozen=True, slots=True)
class Section:
    """Keys that stand together."""

    key: str
    """Dotted; empty for the run itself."""
    meaning: str
    fields: tuple[KeyField, ...]


def as_word(value: Any) -> str:
    """Return a value as the command line takes it."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case Enum():
            return value.name
        case str():
            return value or "''"
        case list() | tuple():
            return f"[{', '.join(map(as_word, value))}]"
        case dict():
            return "{" + ", ".join(f"{key}: {as_word(inner)}" for key, inner in value.items()) + "}"
        case _:
            return str(value)


@functools.cache
def sections() -> tuple[Section, ...]:
    """Return all sections, each followed by those within it, in the order of the schema."""
    return tuple(_sections(RunConfig, ""))


@functools.cache
def fields() -> dict[str, KeyField]:
    """Return every field by its key."""
    return {field.key: field for section in sections() for field in section.fields}


def known_keys() -> list[str]:
    """Return every dotted key of the schema, sections among them."""
    return [key for section in sections() for key in (section.key, *(f.key for f in section.fields)) if key]


def schema_key(key: str) -> str:
    """Return a key with NAME for the names of entries: data.sources.chat.path is data.sources.NAME.path."""
    known, parts, at = _known(), key.split("."), 0
    while at < len(parts):
        before = [*parts[:at], NAME]
        if ".".join(before) in known and ".".join(parts[: at + 1]) not in known:
            parts[at] = NAME
        at += 1
    return ".".join(parts)


def find_field(key: str) -> KeyField | None:
    """Return the field of a key as a person writes it; None where there is none."""
    return fields().get(schema_key(key))


def find_sections(key: str) -> list[Section]:
    """Return the section of a key and those within it; none where it is no section."""
    wanted = schema_key(key)
    return [s for s in sections() if s.key == wanted or s.key.startswith(f"{wanted}.")] if wanted else []


def nearest_keys(key: str, more: tuple[str, ...] = ()) -> list[str]:
    """Return the keys and sections most like a word: the same last name first, then the same letters."""
    known = [*known_keys(), *more]
    last = key.rpartition(".")[2]
    same = [name for name in known if name.rpartition(".")[2] == last]
    letters = difflib.get_close_matches(schema_key(key), known, n=3, cutoff=0.6)
    by_leaf = {name.rpartition(".")[2]: name for name in reversed(known)}
    leaves = [by_leaf[leaf] for leaf in difflib.get_close_matches(last, list(by_leaf), n=2, cutoff=0.7)]
    return list(dict.fromkeys([*same, *letters, *leaves]))[:4]


@functools.cache
def _known() -> frozenset[str]:
    return frozenset(known_keys())


def _sections(cls: type[Any], key: str) -> Iterator[Section]:
    hints = typing.get_type_hints(cls)
    texts = _texts_of(cast(Any, cls))
    found: list[KeyField] = []
    within: list[tuple[type[Any], str]] = []
    for spec in dataclasses.fields(cls):
        name = f"{key}.{spec.name}" if key else spec.name
        hint, is_optional = _without_none(hints[spec.name])
        if dataclasses.is_dataclass(hint):
            within.append((cast(type[Any], hint), name))
            continue
        given = spec.default
        default = spec.default_factory() if callable(spec.default_factory) else given
        found.append(KeyField(name, texts.get(spec.name, ""), hint, is_optional, default))
        entries = typing.get_args(hint)
        if typing.get_origin(hint) is dict and dataclasses.is_dataclass(entries[1]):
            within.append((cast(type[Any], entries[1]), f"{name}.{NAME}"))
    yield Section(key, _one_line(cls.__doc__ or ""), tuple(found))
    for inner, name in within:
        yield from _sections(inner, name)


def _without_none(hint: Any) -> tuple[Any, bool]:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (inner,) = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        return inner, True
    return hint, False


@functools.cache
def _texts_of(cls: type[Any]) -> dict[str, str]:
    """Return the string that follows each name in the body of a class."""
    body = next(
        n for n in _tree(cls.__module__).body if isinstance(n, ast.ClassDef) and n.name == cls.__name__
    )
    found = {}
    for node, after in zip(body.body, body.body[1:], strict=False):
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        name: ast.expr | None = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(node, ast.Assign):
            (name,) = node.targets
        if is_text and isinstance(name, ast.Name):
            found[name.id] = _one_line(str(cast(ast.Constant, cast(ast.Expr, after).value).value))
    return found


@functools.cache
def _tree(module: str) -> ast.Module:
    return ast.parse(inspect.getsource(sys.modules[module]))


def _one_line(text: str) -> str:
    return " ".join(text.split())
