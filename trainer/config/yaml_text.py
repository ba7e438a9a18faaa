"""The one way by which YAML is read that others may have written: how much it comes to is known before it is made.

A few lines of YAML with aliases of aliases (*name) stand for thousands of millions of values, and an alias of what it
stands in for endlessly many. Parsing makes events one after another and expands nothing, so a file is measured by its
events first. Imports neither hydra nor omegaconf.
"""

from __future__ import annotations

from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 1 << 20
"""Of a file. A run of a hundred sources is frozen in a tenth of it."""
MOST_VALUES = 50_000
"""Keys and values of a file, those of aliases counted wherever they stand. A hundred sources are 8,000."""
OF_A_CARD = 1_000_000
"""Of the head of a README of the hub, which may list thousands of configs."""
MOST_DEPTH = 50
"""Mappings and lists within each other. The configuration has six."""
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class TooMuch(yaml.YAMLError):
    """YAML that comes to more than any configuration does; the message says what it has and what is read at most."""


def text_of(file: Path | Traversable) -> str:
    """Return the text of a YAML file, once it is known to come to what a configuration may.

    Raises:
        TooMuch: It does not.
        yaml.YAMLError, UnicodeDecodeError: It is no YAML, or no text.
        OSError: It cannot be read.
    """
    with file.open("rb") as stream:
        read = stream.read(MOST_BYTES + 1)
    if len(read) > MOST_BYTES:
        raise TooMuch(f"has more than {MOST_BYTES:,} bytes")
    text = read.decode("utf-8")
    measure(text)
    return text


def plain(text: str, most_values: int = MOST_VALUES) -> Any:
    """Return what a YAML text holds, as plain values.

    Raises:
        TooMuch: It comes to more than any configuration does.
        yaml.YAMLError: It is no YAML.
    """
    measure(text, most_values)
    return yaml.load(text, Loader=_Loader)


def measure(text: str, most_values: int = MOST_VALUES) -> None:
    """Parse a YAML text without making anything of it.

    Raises:
        TooMuch: It comes to more than any configuration does.
        yaml.YAMLError: It is no YAML.
    """
    sizes: dict[str, tuple[int, int]] = {}
    """By anchor: how many values it stands for, and how deep they are."""
    above: list[tuple[str | None, int, int]] = []
    """Of every open mapping and list: its anchor, the values before it, and how deep anything in it was."""
    count, deepest = 0, 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            above.append((event.anchor, count, deepest))
            count, deepest = count + 1, 0
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before, beside = above.pop()
            if anchor is not None:
                sizes[anchor] = count - before, deepest + 1
            deepest = max(beside, deepest + 1)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise TooMuch(f"has an alias *{event.anchor} of what it stands in, or of nothing")
            values, depth = sizes[event.anchor]
            count, deepest = count + values, max(deepest, depth)
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1, 0
        if count > most_values:
            raise TooMuch(f"comes to more than {most_values:,} values, those of its aliases (*name) counted")
        if len(above) + deepest > MOST_DEPTH:
            raise TooMuch(f"has more than {MOST_DEPTH} mappings and lists within each other")
