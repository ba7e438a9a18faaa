"""Prompts: rows of a person's file, and the beginnings of held-out documents."""

import json

import numpy as np
import pytest

from trainer.config.during import AnswersConfig
from trainer.data.types import Pack
from trainer.errors import ConfigError
from trainer.evaluate.answers import ask_held_out
from trainer.evaluate.prompt_file import read_prompts

ROWS = [
    {"prompt": "Once"},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]},
    {"prompt": "Twice"},
]


def written(tmp_path, rows, name="prompts.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n\n")
    return str(path)


def test_rows_are_text_or_turns_and_num_takes_the_first(tmp_path):
    path = written(tmp_path, ROWS)
    found = read_prompts(AnswersConfig(file=path))
    assert [prompt.text for prompt in found] == ["Once", "", "Twice"]
    assert [len(prompt.messages) for prompt in found] == [0, 2, 0]
    assert [p.text for p in read_prompts(AnswersConfig(file=path, num=1))] == ["Once"]
    assert read_prompts(AnswersConfig(num=3)) == []


def test_lines_of_a_text_file_are_prompts_and_the_template_makes_turns_of_both(tmp_path):
    lines = written(tmp_path, ["One \u2028still one", "", "two"], "prompts.txt")
    found = read_prompts(AnswersConfig(file=lines))
    assert [prompt.text for prompt in found] == ["One \u2028still one", "two"]
    for path in (lines, written(tmp_path, ROWS)):
        found = read_prompts(AnswersConfig(file=path, apply_chat_template=True))
        assert all(prompt.messages and not prompt.text for prompt in found)
    assert found[0].messages == [{"role": "user", "content": "Once"}]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", ":2 is not one JSON object"),
        ('"text"', ":2 has not exactly one of"),
        ({"text": "x"}, ":2 has not exactly one of"),
        ({"prompt": "x", "messages": []}, ":2 has not exactly one of"),
        ({"prompt": " "}, ":2 has a `prompt` that is no text"),
        ({"prompt": 3}, ":2 has a `prompt` that is no text"),
        ({"messages": []}, ":2 has `messages` that are no list of turns"),
        ({"messages": [{"role": "user"}]}, ":2 has `messages` that are no list of turns"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, ":2 ends with an answer"),
    ],
)
def test_a_row_that_is_no_prompt_is_named_by_its_line(tmp_path, row, said):
    with pytest.raises(ConfigError, match=r"^`evaluate\.during\.samples\.file` must be a file") as caught:
        read_prompts(AnswersConfig(file=written(tmp_path, [{"prompt": "x"}, row])))
    assert said in str(caught.value)


def test_a_file_that_cannot_be_read_or_is_too_short_is_a_sentence(tmp_path):
    (tmp_path / "raw.txt").write_bytes(b"\xff\xfe")
    for options, said in (
        (AnswersConfig(file=str(tmp_path / "gone.txt")), "cannot be read (No such file"),
        (AnswersConfig(file=str(tmp_path / "raw.txt")), "is not UTF-8"),
        (AnswersConfig(file=written(tmp_path, ROWS), num=4), "at least 4 prompts, but"),
        (AnswersConfig(file=written(tmp_path, [], "none.jsonl")), "at least 1 prompt, but"),
    ):
        with pytest.raises(ConfigError) as caught:
            read_prompts(options)
        assert said in str(caught.value)


class Packs:
    """Held-out packs: tokens and which of them are learnt, one or more documents each."""

    def __init__(self, *packs):
        self._packs = packs
        self.num_packs = len(packs)

    def pack(self, index):
        learnt, lengths = self._packs[index]
        return Pack(np.arange(10, 10 + len(learnt)), np.array(learnt, dtype=bool), lengths)


class Spelled:
    def decode(self, ids):
        return " ".join(map(str, ids))


def test_a_prompt_ends_where_something_is_learnt_first_and_is_the_first_document_of_its_pack():
    chat = Packs(
        ([0, 0, 0, 1, 1, 0, 1, 0], [7, 1]),
        ([0, 0, 0, 0], [4]),  # nothing is learnt: no prompt
        ([0, 0, 1, 1, 1, 1], [6]),
    )
    text = Packs(([1] * 10, [6, 4]), ([1], [1]), ([1] * 100, [100]))
    found = ask_held_out({"chat": chat, "text": text}, 4, 3, Spelled())
    assert [(one.origin, one.ids, one.expected) for one in found] == [
        ("chat", [10, 11, 12], "13 14"),
        ("text", [10, 11, 12], "13 14 15"),
        ("chat", [10, 11], "12 13 14"),
        ("text", list(range(10, 42)), "42 43 44"),
    ]


def test_fewer_documents_than_prompts_are_said(caplog):
    assert len(ask_held_out({"a": Packs(([1] * 4, [4]))}, 3, 2, Spelled())) == 1
    assert "1 prompts instead of 3" in caplog.text
