"""Texts that name variables of the environment: used by their value, and written down as they were given.

`${oc.env:HF_TOKEN}` stays that in config.yaml, in records and at trackers, and is looked up where the file is read.
Places on disk are the exception: they are frozen whole, so that whoever goes on reads the same files.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterator
from typing import Any

_NAMED = re.compile(r"\$\{([\w.]+)\}")
_VARIABLE = re.compile(r"oc\.env:\s*([A-Za-z_]\w*)")
_PIECE = re.compile(r"\$\{oc\.env:\s*([A-Za-z_]\w*)\s*\}")


class EnvText(str):
    """A text whose value is the environment's.

    Equal to its value, and shown in messages as it was given.
    """

    raw: str
    """As it was given, with `${oc.env:...}`."""

    def __new__(cls, value: str, raw: str) -> EnvText:
        """Take the value of now, and the text that it is looked up by."""
        made = super().__new__(cls, value)
        made.raw = raw
        return made

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        return str(self), self.raw

    def __str__(self) -> str:
        return "".join(self)

    def __repr__(self) -> str:
        return repr(self.raw)


def keep_references(config: Any, given: Any) -> None:
    """Put references in the place of texts that name the environment, in place.

    Args:
        config: The tree with values.
        given: The same tree as nested mappings and lists, unresolved.
    """
    _walk(config, given, given)


def as_given(section: Any) -> Any:
    """Return a copy of a tree in which every reference is the text that it was given as.

    Any other text with `${` has it escaped: it stands for itself.
    """
    if isinstance(section, EnvText):
        return section.raw
    if isinstance(section, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", section)
    if isinstance(section, list | tuple):
        return [as_given(one) for one in section]
    if isinstance(section, dict):
        return {name: as_given(one) for name, one in section.items()}
    if dataclasses.is_dataclass(section) and not isinstance(section, type):
        made = copy.copy(section)
        for name, one in vars(section).items():
            setattr(made, name, as_given(one))
        return made
    return section


def references(section: Any) -> Iterator[EnvText]:
    """Yield every reference of a tree."""
    if isinstance(section, EnvText):
        yield section
    elif isinstance(section, list | tuple):
        for one in section:
            yield from references(one)
    elif isinstance(section, dict):
        yield from references(list(section.values()))
    elif dataclasses.is_dataclass(section):
        yield from references(list(vars(section).values()))


def variables_named(section: Any) -> list[str]:
    """Return the names of all variables that the references of a tree are looked up by, each once."""
    return sorted({name for one in references(section) for name in _VARIABLE.findall(one.raw)})


def shell_pieces(reference: EnvText) -> list[tuple[str, bool]] | None:
    """Return a reference as texts and names of variables (true), in their order; None where it asks for more."""
    pieces = _PIECE.split(reference.raw)
    found = [(piece, index % 2 == 1) for index, piece in enumerate(pieces) if piece]
    return None if any("${" in piece for piece, is_name in found if not is_name) else found


def _walk(owner: Any, given: Any, root: Any) -> None:
    for name, value in _items(owner):
        try:
            raw = given[name]
        except (LookupError, TypeError):
            continue
        if isinstance(raw, str) and not isinstance(value, str):
            raw = _target(raw, root)
        if isinstance(value, str):
            if isinstance(raw, str) and _names_environment(raw, root):
                made = EnvText(value, _NAMED.sub(lambda one: _inner(one[0], root), raw))
                if isinstance(owner, dict | list):
                    owner[name] = made
                else:
                    setattr(owner, name, made)
        elif raw is not None and (dataclasses.is_dataclass(value) or isinstance(value, dict | list)):
            _walk(value, raw, root)


def _items(owner: Any) -> list[tuple[Any, Any]]:
    if isinstance(owner, dict):
        return list(owner.items())
    return list(enumerate(owner) if isinstance(owner, list) else vars(owner).items())


def _names_environment(raw: str, root: Any, depth: int = 0) -> bool:
    """Tell whether a text is looked up in the environment, by itself or by what it names."""
    if "${" not in raw:
        return False
    if "oc.env" in raw:
        return True
    targets = (_target(f"${{{name}}}", root) for name in _NAMED.findall(raw))
    return depth < 10 and any(
        isinstance(one, str) and _names_environment(one, root, depth + 1) for one in targets
    )


def _inner(named: str, root: Any) -> str:
    """Return the text that `${a.b}` names, for the place of it; itself where that is no text."""
    found = _target(named, root)
    return _NAMED.sub(lambda one: _inner(one[0], root), found) if isinstance(found, str) else named


def _target(raw: str, root: Any) -> Any:
    """Return what stands at the place that `${a.b}` names; None for anything else."""
    named = _NAMED.fullmatch(raw)
    found = root
    for part in named[1].split(".") if named else ():
        found = found.get(part) if isinstance(found, dict) else None
    return found if named else None
