"""Words of a command line that cannot be composed, told together where one alone would hide the others."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from trainer.config.entry import key_of
from trainer.config.rule import told_together
from trainer.errors import ConfigError

T = TypeVar("T")


class WordError(ConfigError):
    """A word of the command line that cannot be composed; others may be wrong too."""

    def __init__(self, sentence: str, word: str) -> None:
        """Take the sentence and the word."""
        super().__init__(sentence)
        self.word = word


def word_error(sentence: str, words: Sequence[str]) -> ConfigError:
    """Return the error of a sentence, with the word that it begins with where it is one of these."""
    named = re.match(r"(?:Unknown key )?`([^`]+)`", sentence)
    word = next((word for word in words if named and named[1] in (word, key_of(word))), None)
    return ConfigError(sentence) if word is None else WordError(sentence, word)


def all_told(words: Sequence[str], compose: Callable[[Sequence[str]], T]) -> T:
    """Return what words are composed to; a word that cannot be is left out to see what else cannot.

    Raises:
        ConfigError: Lists all of them.
    """
    try:
        return compose(words)
    except WordError as error:
        first = error
    sentences, word = [str(first)], first.word
    while word in words:
        words = [one for one in words if one != word]
        try:
            compose(words)
        except WordError as error:
            sentences.append(str(error))
            word = error.word
        except ConfigError:
            break  # It may be about what was left out.
    raise told_together(sentences) if len(sentences) > 1 else first
