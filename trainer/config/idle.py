"""Words of a command line that change nothing: said, so that nobody waits for what they ask."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any

from trainer.config.describe import find_field, find_sections
from trainer.config.entry import key_of

FOR_SOME = re.compile(r"(\w+(?:(?:, | and )\w+)*): ")
"""How the meaning of a key begins that counts for some choices of its section only."""
_WITH_CHOICES = ("tune.", "schedule.", "replay.", "objective.")


def replaced(words: Sequence[str]) -> Iterator[str]:
    """Yield a line about every word that a later one takes the place of, with another value."""
    words = [word for word in words if "=" in word and "={" not in word]  # mappings are merged
    last = {key_of(word): word for word in words}
    for word in words:
        later = last[key_of(word)]
        if later.partition("=")[2] != word.partition("=")[2] and not word.startswith("~"):
            yield f"{word} changes nothing: {later} comes after it."


def without_use(config: Any, words: Sequence[str]) -> Iterator[str]:
    """Yield a line about every key that was given and does not count with what its section has chosen.

    Args:
        config: A RunConfig.
        words: Of the command line.
    """
    for key in (key_of(word) for word in words if word.startswith(_WITH_CHOICES)):
        known = find_field(key)
        match = FOR_SOME.match(known.meaning) if known is not None else None
        if match is None:
            continue
        wanted = re.split(r", | and ", match[1])
        above = key.rpartition(".")[0]
        for field in find_sections(above)[0].fields:
            if set(wanted) <= field.choices.keys():
                chosen = _value(config, field.key)
                if isinstance(chosen, Enum) and chosen.name not in wanted:
                    yield f"{key} changes nothing with {field.key}={chosen.name}: it is for {' and '.join(wanted)}."


OF_TRAINING = ("optim.", "schedule.", "train.", "objective.")
"""Sections that no command reads which goes on from a run that is trained."""


def too_late(trained: Any, words: Sequence[str], command: str) -> Iterator[str]:
    """Yield a line about every key that a word gives to a command which reads it of no run that is trained.

    Args:
        trained: The RunConfig with which the run was trained.
        words: Of the command line.
    """
    keys = [key_of(word) for word in words if word.startswith(OF_TRAINING)]
    for key in (one for one in keys if find_field(one) is not None):
        value = _value(trained, key)
        shown = value.name if isinstance(value, Enum) else value
        yield f"{key} changes nothing of `palimpsest {command}`: the run was trained with {shown}."


def _value(config: Any, key: str) -> Any:
    """Return what a configuration holds under a dotted key."""
    for part in key.split("."):
        config = config[part] if isinstance(config, dict) else getattr(config, part)
    return config
