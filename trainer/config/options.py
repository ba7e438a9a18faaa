"""The YAML files of the config groups as a person sees them: which there are, what each is for and what it sets.

Imports neither hydra nor omegaconf.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from trainer.config.yaml_text import TooMuch, plain, text_of
from trainer.errors import ConfigError

CONF_MODULE = "trainer.conf"
PACKAGE = "# @package "
OWN = "palimpsest"
"""Folder that `palimpsest init` writes options of a person's own into, where no other is said."""
_OVERRIDE = "override /"


@dataclass(frozen=True, slots=True)
class Option:
    """One file of a config group."""

    group: str
    name: str
    purpose: str
    """The comment at its head."""
    choices: dict[str, str]
    """Options of other groups that it chooses."""
    values: dict[str, Any]
    """What it sets itself, by dotted key."""
    parents: tuple[str, ...] = ()
    """Options of its group that it goes on from."""

    @property
    def given(self) -> list[str]:
        """Return the keys that it gives a value to; null leaves open."""
        return [key for key, value in self.values.items() if value is not None]

    @property
    def word(self) -> str:
        """Return the word of the command line that chooses it."""
        return f"{self.group}={self.name}"


def group_options() -> dict[str, list[str]]:
    """List every config group and its options, from the YAML files that ship with the package."""
    root = resources.files(CONF_MODULE)
    return {
        group.name: sorted(f.name[:-5] for f in group.iterdir() if f.name.endswith(".yaml"))
        for group in sorted(root.iterdir(), key=lambda entry: entry.name)
        if group.is_dir() and not group.name.startswith("_")
    }


@functools.cache
def shipped_options() -> tuple[Option, ...]:
    """Read every file of every group that ships."""
    root = resources.files(CONF_MODULE)
    return tuple(
        read_option(group, root / group / f"{name}.yaml")
        for group, names in group_options().items()
        for name in names
    )


def searchpath_folders(words: Sequence[str]) -> list[Path]:
    """Return the folders that hydra.searchpath names among the words of a command line."""
    given = [word.partition("=")[2] for word in words if word.lstrip("+").startswith("hydra.searchpath=")]
    names = [name.strip(" '\"") for name in given[-1].strip("[] ").split(",")] if given else []
    return [
        Path(name.removeprefix("file://")).expanduser() for name in names if name and "pkg://" not in name
    ]


def own_options(folder: Path) -> Iterator[Option]:
    """Read the files of groups in a folder of a person's own.

    Raises:
        ConfigError: One of them is not valid YAML.
    """
    for group in group_options():
        for file in sorted((folder / group).glob("*.yaml")):
            yield read_option(group, file)


def read_option(group: str, file: Traversable) -> Option:
    """Read one file of a group.

    Raises:
        ConfigError: It is not valid YAML, no mapping, or comes to more than any option does.
    """
    try:
        text = text_of(file)
        tree = plain(text) or {}
    except TooMuch as error:
        raise ConfigError(f"{file} must be an option of a group, but {error} instead. Mend it.") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{file} must hold keys and values, but holds a {type(tree).__name__} instead.")
    lines = text.splitlines()
    named = lines[0].removeprefix(PACKAGE) if lines and lines[0].startswith(PACKAGE) else None
    package = ".".join(
        group if part == "_group_" else part for part in (named or "_group_").split(".") if part != "_global_"
    )
    purpose = []
    for line in lines if named is None else lines[1:]:
        if not line.startswith("#"):
            break
        purpose.append(line.lstrip("# "))
    defaults = tree.pop("defaults", [])
    entries = [entry for entry in defaults if isinstance(entry, dict)]
    parents = tuple(entry for entry in defaults if isinstance(entry, str) and entry != "_self_")
    choices = {
        str(key).removeprefix(_OVERRIDE): str(value)
        for entry in entries
        for key, value in entry.items()
        if str(key).startswith(_OVERRIDE)
    }
    values = dict(_flat(tree, f"{package}." if package else ""))
    return Option(group, file.name.removesuffix(".yaml"), " ".join(purpose), choices, values, parents)


def _flat(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
