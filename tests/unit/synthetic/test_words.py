"""What texts share, which resemble a question, and quotations word for word; numbers worked out by hand."""

import math

import pytest

from trainer.synthetic.quotes import NO_QUOTE, NOT_THERE, OPEN_QUOTE, likest_sentence, quotations, quote_fault
from trainer.synthetic.words import Bm25, contains, sentences, shared, triples


def test_bm25_is_the_published_formula():
    """Two documents of 2 and 4 words, mean 3; `cat` is in one of two, once and among 4 words."""
    ranking = Bm25(["dog barks", "The cat sat, CAT!"])
    idf = math.log(1 + (2 - 1 + 0.5) / (1 + 0.5))
    norm = 1.5 * (1 - 0.75 + 0.75 * 4 / 3)
    assert ranking.scores("cat cat bird") == {1: pytest.approx(idf * 2 * 2.5 / (2 + norm))}
    assert ranking.ranked("cat") == [1, 0] and ranking.ranked("nothing known") == [0, 1]
    assert ranking.ranked("cat", 1) == [1]


def test_a_word_in_all_documents_still_counts_for_something_and_never_against():
    assert all(score > 0 for score in Bm25(["a b", "a c", "a d"]).scores("a").values())


def test_an_answer_is_found_as_whole_words_in_a_row():
    assert contains("It was in NEW  York, then.", "new york")
    assert not contains("newer Yorkshire", "new york") and not contains("anything", "?!")


def test_what_is_a_part_of_another_is_wholly_shared():
    whole = triples("one two three four five six")
    assert shared(whole, triples("two three four five")) == 1
    assert shared(whole, triples("one two three nine ten eleven")) == 0.25
    assert triples("Hi") == {("hi",)} and shared(triples(""), whole) == 0


def test_sentences_stand_as_they_are_in_the_text():
    text = 'He said "No." Then 3.5 mg were given (i.v.) to all.\nA line\n\nEnd? Yes'
    found = list(sentences(text))
    assert (
        found[0] == 'He said "No.' and found[-1] == "Yes" and "Then 3.5 mg were given (i.v.) to all." in found
    )
    assert all(sentence in text for sentence in found)


def test_quotations_are_checked_word_for_word():
    oracle = "Water boils at 100 C. Ice melts at 0 C."
    assert quotations("so <<Water boils>> and <<Ice>>", "<<", ">>") == ["Water boils", "Ice"]
    for text, fault in (
        ("so <<Water boils at 100 C.>> yes", None),
        ("so << Ice melts >> yes", None),
        ("so <<water boils>>", NOT_THERE),
        ("both <<Ice melts>> and <<Ice boils>>", NOT_THERE),
        ("<<>>", NOT_THERE),
        ("no quotation", NO_QUOTE),
        ("<<Water", OPEN_QUOTE),
        ("Water>> <<Ice>>", OPEN_QUOTE),
        ("<<Water <<boils>> at>>", OPEN_QUOTE),
    ):
        assert quote_fault(text, oracle, "<<", ">>") == fault, text


def test_the_likest_sentence_is_that_of_the_first_text_that_shares_a_word():
    text = "Cats sleep a lot. Dogs bark at cats. Birds sing."
    assert likest_sentence(text, ["dogs bark"]) == ("Dogs bark at cats.", 0)
    assert likest_sentence(text, ["yes", "who does sing"]) == ("Birds sing.", 1)
    assert likest_sentence(text, ["cats"]) == ("Cats sleep a lot.", 0)  # 2/5 both: the earlier
    assert likest_sentence(text, ["yes", "zebra"]) is None
