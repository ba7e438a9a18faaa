"""The one form of a broken rule: the key and a sentence that begins with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.config.many import many
from trainer.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Problem:
    """A broken rule of a configuration."""

    key: str
    sentence: str
    """Begins with the key in backticks."""
    is_open: bool = False
    """Nothing was given yet where a training needs something: nothing is wrong but that."""

    def is_in(self, sections: tuple[str, ...]) -> bool:
        """Tell whether the key is one of these, or below one of them."""
        return any(self.key == section or self.key.startswith(f"{section}.") for section in sections)


OF_CONFIGURATION = "The configuration has"


def problems_shown(sentences: Sequence[str], of: str = OF_CONFIGURATION) -> str:
    """Return the sentences of problems under their count, behind words that say what has them."""
    lines = "\n".join(f"  - {sentence}" for sentence in sentences)
    return f"{of} {many(len(sentences), 'problem')}:\n{lines}"


class ToldTogether(ConfigError):
    """Several problems, each a sentence."""

    def __init__(self, sentences: Sequence[str], of: str = OF_CONFIGURATION) -> None:
        """Take the sentences, which stand under their count, and the words before that."""
        super().__init__(problems_shown(sentences, of))
        self.sentences = tuple(sentences)


def told_together(sentences: Sequence[str], of: str = OF_CONFIGURATION) -> ConfigError:
    """Return the error of sentences: one speaks for itself, several stand under their count."""
    return ConfigError(sentences[0]) if len(sentences) == 1 else ToldTogether(sentences, of)


def said(key: str, sentence: str) -> Problem:
    """Return the problem of a sentence that is whole: of the key that it begins with, else of this one."""
    named = re.match(r"`([^`]+)`", sentence)
    return Problem(named[1] if named else key, sentence)


def problem(key: str, rest: str, is_open: bool = False) -> Problem:
    """Return the problem whose sentence is the key and the rest."""
    return Problem(key, f"`{key}` {rest}", is_open)


def must(key: str, rule: str, value: object, fix: str) -> Problem:
    """Return the problem: `key` must be RULE, but is VALUE instead. FIX."""
    return Problem(key, observed(key, rule, repr(value) if isinstance(value, str) else str(value), fix))


def observed(key: str, rule: str, state: str, fix: str) -> str:
    """Return the same sentence of something that was measured: its state is words of ours, without quotes."""
    return f"`{key}` must be {rule}, but is {state} instead. {fix}".rstrip()
