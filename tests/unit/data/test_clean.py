from __future__ import annotations

from collections import Counter

import pytest

from trainer.config.data import CleanConfig
from trainer.data.rows.clean import clean_document, content_digest, normalize
from trainer.data.types import ChatDocument, CompletionDocument, Document, IdsDocument, TextDocument


def cleaned(document: Document, options: CleanConfig) -> tuple[Document | None, dict[str, int]]:
    counts: Counter[str] = Counter()
    result = clean_document(document, options, counts)
    return result, {key: n for key, n in counts.items() if n}


def test_normalising_composes_letters_and_drops_control_characters() -> None:
    assert normalize("e\u0301\x00a\r\nb\tc\x1b") == "\u00e9a\nb\tc"


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (TextDocument("  a b \n"), TextDocument("a b")),
        (CompletionDocument(" q: ", " 4 "), CompletionDocument("q: ", " 4")),
        (
            ChatDocument([{"role": "user", "content": " a "}]),
            ChatDocument([{"role": "user", "content": "a"}]),
        ),
    ],
)
def test_stripping_keeps_the_space_between_prompt_and_completion(
    document: Document, expected: Document
) -> None:
    assert cleaned(document, CleanConfig()) == (expected, {"stripped": 1})


def test_documents_outside_the_character_limits_are_dropped_and_counted() -> None:
    limits = CleanConfig(min_chars=3, max_chars=4)
    assert cleaned(TextDocument("ab"), limits) == (None, {"too_short": 1})
    assert cleaned(TextDocument("abcde"), limits) == (None, {"too_long": 1})
    assert cleaned(CompletionDocument("ab", "c"), limits)[0] is not None


def test_a_document_that_needs_no_cleaning_is_not_counted() -> None:
    options = CleanConfig(normalize_unicode=True)
    assert cleaned(TextDocument("plain"), options) == (TextDocument("plain"), {})


def test_ids_are_never_cleaned() -> None:
    assert cleaned(IdsDocument([]), CleanConfig(min_chars=5))[0] == IdsDocument([])


def test_digest_depends_on_content_and_on_the_border_between_prompt_and_completion() -> None:
    assert content_digest(TextDocument("a")) == content_digest(TextDocument("a"))
    assert content_digest(CompletionDocument("a", "bc")) != content_digest(CompletionDocument("ab", "c"))
    assert len(content_digest(TextDocument("\ud800"))) == 16
