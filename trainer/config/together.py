"""Words of a command line that cannot be composed, told together where one alone would hide the others."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from trainer.config.entry import key_of
from trainer.config.rule import Problem, ToldTogether, told_together
from trainer.errors import ConfigError

T = TypeVar("T")
_OF_ALL = {"name"}
"""Words that sentences about anything have."""


class WrongWords(ConfigError):
    """All words of the command line that cannot be composed, and what the others are composed to."""

    def __init__(self, sentences: Sequence[str], keys: Sequence[str], rest: object) -> None:
        """Take a sentence and a key for every word, and what is there without them; None where that is nothing."""
        super().__init__(str(told_together(sentences)))
        self.sentences = sentences
        self.keys = keys
        self.rest = rest

    def may_have_led_to(self, problem: Problem) -> bool:
        """Tell whether a broken rule may be broken only because the words were left out: it is about one of them."""
        words = {part for key in self.keys for part in re.split(r"[._]", key.rpartition(".")[2])} - _OF_ALL
        is_near = any(
            f"{one}.".startswith(f"{other}.")
            for key in self.keys
            for one, other in ((key, problem.key), (problem.key, key))
        )
        return is_near or bool(words & set(re.findall(r"[a-z]+", problem.sentence)))


def word_at_fault(sentence: str, words: Sequence[str]) -> str | None:
    """Return the word of a command line that a sentence begins with, or whose value holds the key that it does."""
    named = re.match(r"(?:Unknown key )?`([^`]+)`", sentence)
    key = re.sub(r"\[\d+\]", "", named[1]) if named else ""  # an item of a list
    if named and named[1] in words:
        return named[1]
    near = [word for word in words if f"{key}.".startswith(f"{key_of(word)}.")] if key else []
    # Of several words for a key the last one counts, unless the value of another is told of.
    return max(
        near,
        key=lambda word: (len(key_of(word)), f"'{word.partition('=')[2]}'" in sentence),
        default=None,
    )


def all_told(words: Sequence[str], compose: Callable[[Sequence[str]], T]) -> T:
    """Return what words are composed to; a word that cannot be is left out to see what else cannot.

    Raises:
        WrongWords: Lists all of them.
        ConfigError: No word is at fault, but a file.
    """
    sentences: list[str] = []
    left_out: list[str] = []
    rest: T | None = None
    while True:
        try:
            rest = compose(words)
            if not left_out:
                return rest
            break
        except ConfigError as error:
            told = error.sentences if isinstance(error, ToldTogether) else (str(error),)
            wrong = {word for one in told if (word := word_at_fault(one, words)) is not None}
            if not wrong:
                if not left_out:
                    raise
                break  # It may be about what was left out.
            sentences += told
            left_out += wrong
            words = [one for one in words if one not in wrong]
    raise WrongWords(list(dict.fromkeys(sentences)), [key_of(word) for word in left_out], rest)
