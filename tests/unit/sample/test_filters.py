"""Filters on samples written by hand: each reason is found, and honest text is left alone."""

import pytest

from trainer.config.generate import GenerateConfig
from trainer.sample import filters
from trainer.sample.filters import (
    compression,
    find_fault,
    fingerprint,
    longest_run,
    repeated_share,
    replacement_share,
    without_cut_character,
)

PROSE = (
    "The ferry left at dawn, an hour before anyone in the village had lit a stove, and by the time the fog "
    "lifted it was halfway to the island. Marta counted the gulls behind it, as her father had done, and "
    "wrote the number in the margin of the tide table."
)
CODE = (
    "def total(rows):\n    result = 0\n    for row in rows:\n        if row.price is not None:\n"
    "            result += row.price * row.count\n    return result\n"
)
LIMITS = GenerateConfig()
SPECIAL = {900, 901}


def words(text):
    known = {}
    return [known.setdefault(word, len(known)) for word in text.split()]


def fault_of(text, ids=None, must_end=False, has_ended=True, limits=LIMITS):
    return find_fault([ids or words(text)], [text], must_end, has_ended, SPECIAL, limits)


@pytest.mark.parametrize("text", [PROSE, CODE, "One two three four five six seven eight."])
def test_honest_text_is_kept(text):
    assert fault_of(text) is None


@pytest.mark.parametrize(
    ("text", "ids", "fault"),
    [
        ("Yes.", [1, 2], filters.TOO_SHORT),
        (" \n\t ", list(range(20)), filters.TOO_SHORT),
        (PROSE, [*range(20), 900, *range(20, 30)], filters.SPECIAL),
        ("caf\ufffd au lait, and so on", list(range(20)), filters.UNDECODABLE),
        ("I do not know what to say. " * 9, None, filters.REPEATED),
        ("ha " * 3 + PROSE, [5] * 33 + list(range(100, 200)), filters.RUN),
        ("=" * 2000 + PROSE, list(range(200)), filters.COMPRESSIBLE),
    ],
)
def test_a_degenerate_sample_is_dropped_for_its_reason(text, ids, fault):
    assert fault_of(text, ids) == fault


def test_a_chat_that_the_limit_cut_is_dropped_and_a_text_is_not():
    assert fault_of(PROSE, must_end=True, has_ended=False) == filters.NOT_ENDED
    assert fault_of(PROSE, must_end=False, has_ended=False) is None


def test_one_bad_turn_drops_the_chat():
    turns, texts = [list(range(20)), list(range(20))], [PROSE, PROSE]
    assert find_fault(turns, texts, True, True, SPECIAL, LIMITS) is None
    assert find_fault([turns[0], [7] * 40], texts, True, True, SPECIAL, LIMITS) == filters.REPEATED
    assert find_fault([turns[0], []], [PROSE, ""], True, True, SPECIAL, LIMITS) == filters.TOO_SHORT


def test_thresholds_are_the_last_values_that_are_kept():
    exact = GenerateConfig(max_run_tokens=3, max_repeated_ngrams=1.0, max_compression=100.0)
    assert fault_of(PROSE, [1, 2, 2, 2, 3, 4, 5, 6], limits=exact) is None
    assert fault_of(PROSE, [1, 2, 2, 2, 2, 4, 5, 6], limits=exact) == filters.RUN
    share = GenerateConfig(max_replacement=0.5)
    assert fault_of("ab\ufffd\ufffd", list(range(8)), limits=share) is None
    assert fault_of("a\ufffd\ufffd", list(range(8)), limits=share) == filters.UNDECODABLE


def test_the_measures_are_what_their_names_say():
    assert repeated_share([1, 2, 3]) == 0.0  # no 4-gram at all
    assert repeated_share([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)
    assert repeated_share([7] * 13) == pytest.approx(0.9)
    assert longest_run([]) == 0 and longest_run([0]) == 1 and longest_run([1, 2, 2, 2, 1, 1]) == 3
    assert compression("a" * 10_000) > 100 and 1 < compression(PROSE) < 3
    assert replacement_share("") == 0.0 and replacement_share("a\ufffd") == 0.5


def test_half_a_character_at_the_cut_is_not_held_against_a_text():
    assert without_cut_character("na\u00efve caf\ufffd\ufffd") == "na\u00efve caf"


def test_duplicates_are_found_whatever_their_case_spaces_and_unicode_form():
    assert fingerprint(["Caf\u00e9  au\nlait"]) == fingerprint(["cafe\u0301 AU lait "])
    assert fingerprint(["one", "two"]) != fingerprint(["one two"])
    assert fingerprint(["one"]) != fingerprint(["two"])
