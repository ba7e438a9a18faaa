"""RAFT rows: which documents stand beside the oracle, where it stands, and what is quoted."""

import random

import pytest

from trainer.config.synthetic import DistractorChoice, QuoteSource, RaftConfig, SyntheticConfig, WithoutOracle
from trainer.errors import DataError
from trainer.synthetic.distractors import AGAIN, LEAKS, NEAR, DistractorPool, suitable
from trainer.synthetic.given_rows import GivenRow
from trainer.synthetic.quotes import NOT_THERE
from trainer.synthetic.raft import EMPTY, NO_REASONING, TOO_FEW, RaftMaker, read_question
from trainer.synthetic.told import raft_lines

NAMES = [f"{a}{b}" for a in "bcdfglmnpr" for b in ("ako", "elu", "imo", "ora")]


def fact(number):
    """Return a document of its own: no three words in a row are shared with another."""
    name, other = NAMES[number], NAMES[-1 - number]
    return f"{name} lives near {other} hill. {name.title()} eats {other} fruit daily."


def rows(num):
    return [
        GivenRow(f"r{n}", f"f, line {n}", {"question": f"What does {NAMES[n]} eat?", "answer": f"{NAMES[-1 - n]} fruit",
                                          "document": fact(n)})
        for n in range(num)
    ]  # fmt: skip


def options(**changes):
    return SyntheticConfig(raft=RaftConfig(**changes))


def made(settings, given, writer=None):
    questions = [read_question(row, settings.raft) for row in given]
    pool = None
    if settings.raft.distractors is not DistractorChoice.given:
        pool = DistractorPool([one.oracle for one in questions], settings.raft)
    part = RaftMaker(settings, pool, {"verb": "raft"}, writer).make(questions, 0)
    assert len(part.notes) == len(given)
    return part


def documents(row):
    text = row["messages"][0]["content"].partition("\n\nQuestion: ")[0]
    return [one.partition(":\n")[2] for one in text.split("\n\n") if one.startswith("Document ")]


def test_the_oracle_is_there_in_its_share_at_every_place_and_no_distractor_answers():
    given = rows(20)
    share, places, sizes = 0, set(), set()
    for seed in range(20):
        settings = options(oracle_share=0.7, num_distractors=3, min_distractors=2)
        settings.seed = seed
        part = made(settings, given)
        assert len(part.rows) == 20
        for row, one in zip(part.rows, given, strict=True):
            shown, at = documents(row), row["provenance"]["oracle"]
            sizes.add(row["provenance"]["distractors"])
            assert len(shown) == row["provenance"]["distractors"] + (at is not None)
            assert (one.values["document"] in shown) == (at is not None)
            if at is not None:
                assert shown[at] == one.values["document"]
                share, places = share + 1, places | {(len(shown), at)}
            assert not any(one.values["answer"] in text for place, text in enumerate(shown) if place != at)
    assert 0.62 < share / 400 < 0.78  # 0.7 +- 3.5 standard deviations of 400 rows
    assert sizes == {2, 3} and places == {(3, 0), (3, 1), (3, 2), (4, 0), (4, 1), (4, 2), (4, 3)}


def test_a_row_says_the_quotation_and_then_the_answer_whatever_rows_stand_around_it():
    given = rows(8)
    part = made(options(oracle_share=1.0, num_distractors=2), given)
    assert part.rows[0]["messages"][-1] == {
        "role": "assistant",
        "content": "##begin_quote##Bako eats rora fruit daily.##end_quote##\n\nAnswer: rora fruit",
    }
    assert part.rows[0]["provenance"]["parent"] == "r0"
    alone = RaftMaker(
        options(oracle_share=1.0, num_distractors=2),
        DistractorPool(map(fact, range(8)), RaftConfig()),
        {"verb": "raft"},
    )
    assert alone.make([read_question(given[3], RaftConfig())], 7).rows == [part.rows[3]]


def test_rows_without_the_oracle_learn_the_quotation_or_the_answer_alone():
    quoting = made(options(oracle_share=0.0, num_distractors=2), rows(6)).rows
    plain = made(
        options(oracle_share=0.0, num_distractors=2, without_oracle=WithoutOracle.answer), rows(6)
    ).rows
    assert "##begin_quote##" in quoting[0]["messages"][-1]["content"]
    assert plain[0]["messages"][-1]["content"] == "Answer: rora fruit"


def test_documents_that_answer_or_are_nearly_the_oracle_are_left_out_and_counted():
    oracle = "the red fox jumps over the lazy old dog today"
    candidates = [
        oracle,
        oracle + " again",  # a superset
        "They say the lazy cat sleeps on a warm mat",  # holds the answer
        "some thing else that is of no use at all",
        "some thing else that is of no use at all!",  # nearly the one before
        "and now for another text",
    ]
    taken, passed = suitable(candidates, "Warm  MAT", oracle, 2, RaftConfig())
    assert taken == [candidates[3], candidates[5]]
    assert passed == {NEAR: 1, LEAKS: 1, AGAIN: 1}
    taken, passed = suitable(candidates[2:3], "mat", oracle, 2, RaftConfig())
    assert taken == [candidates[2]] and not passed  # three letters are not looked for
    assert suitable(candidates[2:3], "mat", oracle, 2, RaftConfig(min_leak_chars=0))[0] == []


def test_bm25_takes_what_resembles_the_question_and_random_does_not():
    texts = [f"{fact(n)} {'Planets turn slowly.' if n in (7, 9) else ''}" for n in range(12)]
    oracle = "Mars is a planet."
    near = DistractorPool([*texts, oracle], RaftConfig(num_distractors=2))
    found, _ = near.choose("Which planets turn?", "Mars", oracle, 2, random.Random(0))
    assert sorted(found) == sorted([texts[7], texts[9]])
    anyway = DistractorPool(
        [*texts, oracle], RaftConfig(num_distractors=2, distractors=DistractorChoice.random)
    )
    chosen = {
        text
        for seed in range(30)
        for text in anyway.choose("Which planets turn?", "Mars", oracle, 2, random.Random(seed))[0]
    }
    assert len(chosen) > 6 and oracle not in chosen


def test_a_row_whose_distractors_all_answer_is_dropped_and_a_corpus_that_is_too_small_refused():
    given = rows(4)
    for row in given:
        row.values["answer"] = "fruit daily"
    part = made(options(num_distractors=3), given)
    assert part.rows == [] and {note["dropped"] for note in part.notes} == {TOO_FEW}
    with pytest.raises(
        DataError, match=r"num_distractors` must be less than the documents .* is 4 and there are 4"
    ):
        made(options(num_distractors=4), given)


def test_reasoning_of_the_row_is_learnt_where_its_quotations_stand_in_the_oracle():
    given = rows(6)
    for number, row in enumerate(given):
        quote = "lives near" if number % 2 else "lived near"
        row.values["why"] = f"As it says ##begin_quote##{NAMES[number]} {quote}##end_quote##."
    part = made(options(num_distractors=2, quote=QuoteSource.row, reasoning_column="why"), given)
    assert [row["provenance"]["parent"] for row in part.rows] == ["r1", "r3", "r5"]
    assert [note.get("dropped") for note in part.notes[::2]] == [NOT_THERE] * 3
    assert part.rows[0]["messages"][-1]["content"].startswith(
        "As it says ##begin_quote##belu lives near##end"
    )
    said = "\n".join(raft_lines(part.notes))
    assert "3 of 6 questions made into rows" in said and f"dropped: 3 rows {NOT_THERE}" in said
    assert "3 quotations, each found in its oracle" in said


def test_a_model_writes_reasoning_and_the_first_that_quotes_rightly_is_taken():
    asked = []

    def write(requests, number):
        asked.extend(requests)
        wrong, right = "##begin_quote##lies##end_quote##", "See ##begin_quote##eats rora fruit##end_quote##."
        return [[wrong, right, wrong], [wrong, wrong], []][: len(requests)]

    part = made(options(oracle_share=1.0, num_distractors=2, quote=QuoteSource.model), rows(3), write)
    assert [row["messages"][-1]["content"] for row in part.rows] == [
        "See ##begin_quote##eats rora fruit##end_quote##.\n\nAnswer: rora fruit"
    ]
    assert [note.get("dropped") for note in part.notes] == [None, NOT_THERE, NO_REASONING]
    assert fact(0) in asked[0] and "rora fruit" in asked[0]


def test_given_distractors_are_held_to_the_same_rules_and_a_row_with_nothing_is_dropped():
    given = rows(2)
    given[0].values["others"] = [fact(9), fact(0), fact(8)]
    given[1].values.update({"others": [fact(5)], "answer": " "})
    settings = options(num_distractors=2, distractors=DistractorChoice.given, distractors_column="others")
    part = made(settings, given)
    assert [note.get("dropped") for note in part.notes] == [None, EMPTY]
    assert set(documents(part.rows[0])) - {fact(0)} == {fact(9), fact(8)}
    given[0].values["others"] = "one text"
    with pytest.raises(
        DataError, match="must name a column of lists of texts, but 'others' of f, line 0 is a str"
    ):
        made(settings, given)


def test_a_list_of_paragraphs_is_a_document_and_a_column_that_is_absent_is_named():
    row = GivenRow("a", "f.jsonl, line 3", {"document": ["One.", " Two."], "question": "q", "answer": 4})
    assert (
        read_question(row, RaftConfig()).oracle == "One.\n\nTwo."
        and read_question(row, RaftConfig()).answer == "4"
    )
    with pytest.raises(
        DataError, match=r"synthetic.raft.answer_column` must .* 'gold' is not in f.jsonl, line 3, which"
    ):
        read_question(row, RaftConfig(answer_column="gold"))
