"""Answers revised by a critique, and questions to documents, with a sampler that says what it is told."""

import math

import pytest

from trainer.config.synthetic import QuestionsConfig, ReviseConfig, RevisedRows, SyntheticConfig
from trainer.errors import DataError
from trainer.synthetic.best_answers import Answer
from trainer.synthetic.chunk_questions import (
    NO_FORM,
    NOT_ANSWERED,
    TOO_LONG,
    QuestionWriter,
    chunks_of,
    near_duplicates_out,
)
from trainer.synthetic.given_rows import GivenRow
from trainer.synthetic.principles import REVISE, Principle, read_principles
from trainer.synthetic.revised import CUT, EMPTY, UNCHANGED, AnswerReviser, read_to_revise
from trainer.synthetic.told import question_lines, revised_lines


class Scripted:
    """Says, of each stage, what a function of the turns gives; keeps what it was asked."""

    def __init__(self, say):
        self._say, self.asked = say, []

    def answers(self, prompts, num_answers, number):
        self.asked += [(number, turns) for turns in prompts]
        return [self._say(turns) for turns in prompts]


def revised(turns):
    """Answer with the prompt, criticise, and revise to upper case; what is upper case already stays."""
    last, first = turns[-1]["content"], turns[0]["content"].split("\n\n")[0]
    if "what is wrong with it" in last:
        return [Answer("It is quiet.", False)]
    if len(turns) == 3:
        return [Answer(first.upper(), first == "cut")]
    return [Answer(first, False)]


def rows(*prompts, answer_column=None, **changes):
    options = SyntheticConfig(revise=ReviseConfig(answer_column=answer_column, **changes))
    given = [GivenRow(f"r{n}", "f", {"prompt": prompt, "answer": "say"}) for n, prompt in enumerate(prompts)]
    asking = Scripted(revised)
    maker = AnswerReviser(options, asking, [Principle("Is it loud?", "Shout.")], {"verb": "revise"})
    return maker.make([read_to_revise(row, options) for row in given], 4), asking


def test_an_answer_is_sampled_criticised_by_a_principle_and_revised():
    part, asking = rows("hey", "HO", "cut", "")
    assert [row["messages"] for row in part.rows] == [
        [{"role": "user", "content": text}, {"role": "assistant", "content": text.upper()}]
        for text in ("hey", "HO")
    ]
    assert part.rows[0]["provenance"]["critique"] == "It is quiet."
    assert part.rows[0]["provenance"]["principle"] == "Is it loud?"
    assert [note.get("dropped") for note in part.notes] == [None, None, CUT, EMPTY]
    assert {number for number, _ in asking.asked} == {12, 13, 14}  # a seed for each stage of part 4
    critique = next(turns for number, turns in asking.asked if number == 13)
    assert critique[0]["content"].startswith(
        "hey\n\nHere is an answer to the request above:\n\nhey\n\nIs it loud?"
    )
    revision = next(turns for number, turns in asking.asked if number == 14)
    assert [turn["content"] for turn in revision[1:]] == ["It is quiet.", "Shout."]
    said = "\n".join(revised_lines(part.notes, 2))
    assert "revision unchanged: 50.0 %" in said and "median 1.00, from 1.00 to 1.00" in said


def test_pairs_prefer_the_revision_of_the_rows_own_answer():
    part, asking = rows("hey", "SAY", answer_column="answer", write=RevisedRows.pairs)
    assert [(pair["chosen"][0]["content"], pair["rejected"][0]["content"]) for pair in part.rows] == [
        ("HEY", "say"), ("SAY", "say"),
    ]  # fmt: skip
    assert {number for number, _ in asking.asked} == {13, 14}
    part, _ = rows("SAY", write=RevisedRows.pairs)
    assert part.rows == [] and part.notes[0]["dropped"] == UNCHANGED


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.txt", "# ours\nBe kind.\n\nBe brief.\n", [Principle("Be kind."), Principle("Be brief.")]),
        ("a.yaml", "- Be kind.\n- {critique: \"Is it kind?\", revision: Be kinder.}",
         [Principle("Be kind."), Principle("Is it kind?", "Be kinder.")]),
        ("a.yml", "critique: Is it so?", [Principle("Is it so?", REVISE)]),
    ],
)  # fmt: skip
def test_principles_are_lines_or_a_yaml_list(tmp_path, name, text, found):
    file = tmp_path / name
    file.write_text(text)
    assert read_principles("k", str(file)) == found


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", "", "`k` must hold a principle, but"),
        ("a.txt", "# none yet\n\n", "has none. Write one a line, or a YAML list"),
        ("a.yaml", "[]", "has none"),
        ("a.yaml", "", "has none"),
        ("a.yaml", "a: [", "must be a YAML list of principles"),
        ("a.yaml", "- 3", "has 3 instead. Mend it"),
        ("a.yaml", "- {critic: x}", "instead. Mend it"),
        ("a.txt", None, "cannot be read"),
    ],
)
def test_a_file_without_principles_is_refused(tmp_path, name, text, said):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        read_principles("k", str(tmp_path / name))
    assert said in str(caught.value)


def test_parts_of_documents_are_whole_paragraphs_else_sentences_else_words():
    text = "One two.\n\nThree four.\n\n" + "Five six seven. " * 3 + "\n\n" + "x" * 45
    parts = [chunk.text for chunk in chunks_of("d", text, 20)]
    assert parts == ["One two.", "Three four.", "Five six seven.", "Five six seven.", "Five six seven.",
                     "x" * 20, "x" * 20, "x" * 5]  # fmt: skip
    assert next(chunk.text for chunk in chunks_of("d", text, 25)) == "One two.\n\nThree four."
    assert [chunk.id for chunk in chunks_of("d", "a\n\nb", 1)] == ["d#1", "d#2"] and chunks_of(
        "d", " \n", 100
    ) == []


def test_questions_are_kept_that_a_second_pass_finds_answered_and_that_are_not_nearly_another():
    texts = {
        "One.": ["Question: What is one?\nAnswer: It is one."],
        "Two.": ["Well. Question: What\nis two?\n\nAnswer: Two.\nYes."],
        "Three.": ["I do not know."],
        "Four.": ["Question: What is four and more?\nAnswer: Four."],
        "Long.": None,
    }

    def say(turns):
        told = texts[turns[0]["content"].split("\n")[1]]
        return None if told is None else [Answer(text, False) for text in told]

    def letters(question, begins):
        yes = 0.2 if "Proposed answer: Four." in question else 0.9
        return math.log(yes / 2), math.log((1 - yes) / 2)

    options = SyntheticConfig(questions=QuestionsConfig(min_answerable=0.5))
    writer = QuestionWriter(options, Scripted(say), letters, {"verb": "questions"})
    part = writer.make([chunk for text in texts for chunk in chunks_of(text, text, 100)], 0)
    assert [(row["id"], row["question"], row["answer"], row["document"]) for row in part.rows] == [
        ("One.#1.1", "What is one?", "It is one.", "One."),
        ("Two.#1.1", "What\nis two?", "Two.\nYes.", "Two."),
    ]
    assert part.rows[0]["provenance"]["answerable"] == pytest.approx(0.9)
    assert [note["dropped"] for note in part.notes] == [None, None, NO_FORM, NOT_ANSWERED, TOO_LONG]
    said = "\n".join(question_lines(part.notes, 1, 5))
    assert (
        "found answered by a second pass: 66.7 %" in said
        and "dropped: 1 row whose question is nearly" in said
    )
    is_new = near_duplicates_out(0.8)
    asked = [
        "What does the cat eat?",
        "What does the CAT eat",
        "What does the dog eat?",
        "So, what does the cat eat?",
    ]
    assert [is_new({"question": question}) for question in asked] == [True, False, True, False]
