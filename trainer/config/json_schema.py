"""The configuration as a JSON schema (draft 2020-12), for editors. Imports neither hydra nor omegaconf."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from enum import Enum
from typing import Any, cast

from trainer.config.describe import NAME, KeyField, Section, sections

DRAFT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]
_REFERENCE: Schema = {"type": "string", "pattern": r"\$\{.+\}"}
"""`${KEY}` may stand for any value, and ??? for one that is still to be given."""
_OPEN: Schema = {"const": "???"}
_DEFAULTS: Schema = {
    "description": "Other files that this one builds on, later ones over earlier ones; Hydra's own list.",
    "type": "array",
    "items": {"type": ["string", "object"]},
}
_HYDRA: Schema = {"description": "Hydra's own settings, such as searchpath.", "type": "object"}
_PLAIN = {int: "integer", float: "number", bool: "boolean", str: "string"}


def json_schema(key: str = "") -> Schema:
    """Return the schema of a file that gives some keys of a section, or of the whole run: nothing is required.

    Args:
        key: A section, NAME standing for the name of an entry.
    """
    properties: Schema = {"defaults": _DEFAULTS}
    if not key:
        properties["hydra"] = _HYDRA
    found = _section(key)
    return {
        "$schema": DRAFT,
        "title": f"Palimpsest: {key or 'a run'}",
        **found,
        "properties": {**properties, **found["properties"]},
    }


def _section(key: str) -> Schema:
    known = _by_key()
    section = known[key]
    properties = {field.key.rpartition(".")[2]: _field(field) for field in section.fields}
    for inner in known:
        above, _, name = inner.rpartition(".")
        if name and name != NAME and above == key:
            properties[name] = _section(inner)
    return {
        "description": section.meaning,
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
    }


def _by_key() -> dict[str, Section]:
    return {section.key: section for section in sections()}


def _field(field: KeyField) -> Schema:
    told = field.meaning + (f" Unit: {field.unit}." if field.unit else "")
    told += "".join(f"\n{word}: {meaning}" for word, meaning in field.choices.items())
    schema: Schema = {"description": told}
    value = _typed(field.hint, lambda: _section(f"{field.key}.{NAME}"))
    others = [{"type": "null"}] if field.is_optional else []
    if typing.get_origin(field.hint) is dict:
        schema |= value
    elif field.hint is str:
        schema |= {"type": ["string", "null"]} if field.is_optional else value
    else:
        schema["anyOf"] = [value, *others, _REFERENCE, _OPEN]
    return schema | {"default": _json(field.default)}


def _typed(hint: Any, entry: Callable[[], Schema]) -> Schema:
    """Return the schema of a type.

    Args:
        entry: Makes the schema of an entry of a mapping to sections.
    """
    inner = typing.get_args(hint)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"enum": [member.name for member in hint]}
    if typing.get_origin(hint) is list:
        return {"type": "array", "items": _typed(inner[0], entry)}
    if typing.get_origin(hint) is dict:
        of = entry() if dataclasses.is_dataclass(inner[1]) else _typed(inner[1], entry)
        return {"type": "object", "additionalProperties": of}
    return {} if hint is Any else {"type": _PLAIN[hint]}


def _json(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, list):
        return [_json(one) for one in value]
    return (
        {key: _json(one) for key, one in cast(dict[str, Any], value).items()}
        if isinstance(value, dict)
        else value
    )
