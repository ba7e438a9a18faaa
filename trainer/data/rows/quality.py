"""Rules of thumb by which a text is left out, as Gopher's (Rae et al. 2021, arXiv:2112.11446, A.1.1). Pure."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.curate import CurateConfig
from trainer.data.rows.message import short
from trainer.data.types import (
    ChatDocument,
    CompletionDocument,
    Document,
    IdsDocument,
    RowDropped,
    TextDocument,
)

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
BULLETS = ("\u2022", "\u2023", "\u25cf", "\u25e6", "- ", "* ")
ELLIPSES = ("...", "\u2026")


def text_of(document: Document) -> str:
    """Return the text of a document, of a conversation that of its turns; empty for token ids."""
    match document:
        case TextDocument(text):
            return text
        case CompletionDocument(prompt, completion):
            return f"{prompt}\n{completion}"
        case ChatDocument(messages):
            return "\n".join(message["content"] for message in messages if message["content"])
        case IdsDocument():
            return ""


def refuse_low_quality(text: str, rules: CurateConfig) -> None:
    """Raise for the first rule that a text breaks.

    Raises:
        RowDropped: With the number that broke it, and how the text begins.
    """
    for cause, measured in _measured(text):
        low, high = _bounds(cause, rules)
        if (low is not None and measured < low) or (high is not None and measured > high):
            side = f"under {low:g}" if low is not None and measured < low else f"over {high:g}"
            raise RowDropped(cause, f"{measured:.3g}, {side}: {short(text[:60])}")


def _bounds(cause: str, rules: CurateConfig) -> tuple[float | None, float | None]:
    match cause:
        case "num_words":
            return rules.min_words, rules.max_words
        case "word_chars":
            return rules.min_mean_word_chars, rules.max_mean_word_chars
        case "symbols":
            return None, rules.max_symbols_per_word
        case "bullet_lines":
            return None, rules.max_bullet_lines
        case "ellipsis_lines":
            return None, rules.max_ellipsis_lines
        case "alphabetic_words":
            return rules.min_alphabetic_words, None
        case "stop_words":
            return rules.min_stop_words, None
        case _:
            return None, rules.max_repeated_lines


def _measured(text: str) -> Iterator[tuple[str, float]]:
    """Yield the numbers that rules are about, by how a document that breaks one is counted."""
    words = text.split()
    num_words = max(len(words), 1)
    yield "num_words", len(words)
    yield "word_chars", sum(map(len, words)) / num_words
    yield "symbols", max(text.count("#"), sum(map(text.count, ELLIPSES))) / num_words
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    num_lines = max(len(lines), 1)
    yield "bullet_lines", sum(line.startswith(BULLETS) for line in lines) / num_lines
    yield "ellipsis_lines", sum(line.endswith(ELLIPSES) for line in lines) / num_lines
    yield "alphabetic_words", sum(any(map(str.isalpha, word)) for word in words) / num_words
    yield "stop_words", len(STOP_WORDS & {word.strip(".,;:!?\"'()").lower() for word in words})
    yield "repeated_lines", 1 - len(set(lines)) / num_lines if lines else 0.0
