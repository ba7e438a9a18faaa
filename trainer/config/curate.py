"""Config section for what is left out of a source by what its text is like. Everything is off by itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Contaminated(Enum):
    """What becomes of a document that shares text with an evaluation set."""

    report = "report"
    """Learn it; count such documents and show some."""
    drop = "drop"
    """Leave it out; count such documents and show some."""


@dataclass
class CurateConfig:
    """What is left out by what a document is like, with counts by cause and the first of each; null: not looked at.

    Of format=text, completion and chat; a chat's text is that of all its turns. The numbers of Gopher's rules (Rae et
    al. 2021, arXiv:2112.11446, appendix A.1.1), made for web pages in English, stand behind the keys.
    """

    min_words: int | None = None
    """Gopher: 50."""
    max_words: int | None = None
    """Gopher: 100000."""
    min_mean_word_chars: float | None = None
    """Mean length of a word in characters. Gopher: 3."""
    max_mean_word_chars: float | None = None
    """Gopher: 10."""
    max_symbols_per_word: float | None = None
    """Hashes (#) a word, and ellipses (... or its one character) a word, each. Gopher: 0.1."""
    max_bullet_lines: float | None = None
    """Share of lines that begin with a bullet. Gopher: 0.9."""
    max_ellipsis_lines: float | None = None
    """Share of lines that end with an ellipsis. Gopher: 0.3."""
    min_alphabetic_words: float | None = None
    """Share of words with a letter. Gopher: 0.8."""
    min_stop_words: int | None = None
    """How many of the words the, be, to, of, and, that, have, with there are at least. Gopher: 2."""
    max_repeated_lines: float | None = None
    """Share of lines that stood in the document before. Gopher: 0.3."""
    languages: list[str] = field(default_factory=list)
    """Codes of ISO 639 ([en, de]): a document whose most likely language is none of them is left out. Needs the extra
    `language`. Of a few words a language is guessed badly."""
    near_duplicates: float | None = None
    """Leave out a document that is this like an earlier one of the source or more: the Jaccard similarity of their runs
    of 5 words, estimated by 120 MinHash values. 0.8 is usual. Range: (0, 1]."""
    against: list[str] = field(default_factory=list)
    """Evaluation sets, .jsonl (every text of a row) or .txt (a text a line): a document that shares `ngram` words in a
    row with one of them is contaminated."""
    ngram: int = 13
    """Words in a row, in lower case and without punctuation, that make an overlap. 13: GPT-3 (arXiv:2005.14165,
    appendix C)."""
    contaminated: Contaminated = Contaminated.report
    """What becomes of contaminated documents: `report` learns them, `drop` leaves them out; both count them and show
    some."""

    @property
    def is_on(self) -> bool:
        """Tell whether anything is looked at."""
        return self != CurateConfig(ngram=self.ngram, contaminated=self.contaminated)
