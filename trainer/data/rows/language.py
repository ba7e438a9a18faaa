"""Which language a text is in, by py3langid (the extra `language`): naive Bayes over bytes (Lui and Baldwin 2012)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from trainer.data.rows.message import short
from trainer.data.types import RowDropped
from trainer.errors import DataError

INSTALL = "pip install 'palimpsest-trainer[language]'"


def require_languages(name: str, languages: Sequence[str]) -> None:
    """Raise where languages are asked for that cannot be told.

    Raises:
        DataError: Says what to install, or which codes there are.
    """
    if not languages:
        return
    key = f"`data.sources.{name}.curate.languages`"
    try:
        known = _identifier().labels
    except ImportError as error:
        raise DataError(
            f"{key} must be empty without py3langid, but is {', '.join(languages)} instead ({error}). Install it with: "
            f"{INSTALL}."
        ) from error
    unknown = [code for code in languages if code not in known]
    if unknown:
        raise DataError(
            f"{key} must be codes of ISO 639 that py3langid knows ({', '.join(sorted(known))}), but has "
            f"'{unknown[0]}' instead. Write one of them."
        )


def refuse_language(text: str, languages: Sequence[str]) -> None:
    """Raise where a text is in none of the languages.

    Raises:
        RowDropped: With the language and its probability.
    """
    found, probability = _identifier().classify(text)
    if found not in languages:
        raise RowDropped("language", f"{found}, {probability:.2f}: {short(text[:60])}")


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
