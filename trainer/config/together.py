"""Words of a command line that cannot be composed, told together where one alone would hide the others."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from trainer.config.entry import key_of
from trainer.config.rule import Problem, told_together
from trainer.errors import ConfigError

T = TypeVar("T")


class WordError(ConfigError):
    """A word of the command line that cannot be composed; others may be wrong too."""

    def __init__(self, sentence: str, word: str) -> None:
        """Take the sentence and the word."""
        super().__init__(sentence)
        self.word = word


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
        words = {part for key in self.keys for part in re.split(r"[._]", key.rpartition(".")[2])}
        is_near = any(
            f"{one}.".startswith(f"{other}.")
            for key in self.keys
            for one, other in ((key, problem.key), (problem.key, key))
        )
        return is_near or bool(words & set(re.findall(r"[a-z]+", problem.sentence)))


def word_error(sentence: str, words: Sequence[str]) -> ConfigError:
    """Return the error of a sentence, with the word that it begins with where it is one of these."""
    named = re.match(r"(?:Unknown key )?`([^`]+)`", sentence)
    word = next((word for word in words if named and named[1] in (word, key_of(word))), None)
    return ConfigError(sentence) if word is None else WordError(sentence, word)


def all_told(words: Sequence[str], compose: Callable[[Sequence[str]], T]) -> T:
    """Return what words are composed to; a word that cannot be is left out to see what else cannot.

    Raises:
        WrongWords: Lists all of them.
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
        except WordError as error:
            sentences.append(str(error))
            left_out.append(error.word)
            if error.word not in words:
                break
            words = [one for one in words if one != error.word]
        except ConfigError:
            if not left_out:
                raise
            break  # It may be about what was left out.
    raise WrongWords(sentences, [key_of(word) for word in left_out], rest)
