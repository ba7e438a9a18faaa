"""Which held-out turns are asked for calls, how answers are judged, and what counts as a refusal."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.helpers.chat_shapes import SHAPES, unmarked
from tests.helpers.tokenizers import make_tokenizer
from trainer.config.asked import AskedConfig, CallsConfig, RefusalsConfig
from trainer.config.check_evaluate import asked_problems, task_problems
from trainer.config.data import DataConfig, Format, Role, SourceConfig
from trainer.config.train import EvaluateConfig
from trainer.data.prepare import prepare
from trainer.errors import ConfigError
from trainer.evaluate.prompt_file import read_prompt_file
from trainer.evaluate.refusal_phrases import is_refusal, read_phrases
from trainer.evaluate.tasks.refusals import ask_refusals, judge_refusals
from trainer.evaluate.tasks.spoken_calls import SpokenCall
from trainer.evaluate.tasks.tool_calls import ask_calls, judge_calls

F, G = SpokenCall("f", {"a": 1}), SpokenCall("g", {})


def call(call_: SpokenCall) -> dict[str, Any]:
    return {"type": "function", "function": {"name": call_.name, "arguments": call_.arguments}}


def rows() -> list[Any]:
    user = {"role": "user", "content": "one"}
    turns = [
        user,
        {"role": "assistant", "content": "", "tool_calls": [call(F), call(G)]},
        {"role": "tool", "content": "r"},
        {"role": "tool", "content": "s"},
        {"role": "assistant", "content": "said"},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "now", "tool_calls": [call(G)]},
    ]
    return [turns, [user, {"role": "assistant", "content": "no call"}]]


def test_every_turn_with_calls_is_asked_with_all_before_it(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in rows()))
    tokenizer = make_tokenizer(unmarked(SHAPES["qwen25"]))
    source = SourceConfig(path=str(file), format=Format.chat, role=Role.probe)
    data = DataConfig({"s": source}, 2048, cache_dir=str(tmp_path / "cache"), num_workers=1)
    store = prepare(data, tokenizer, lambda: tokenizer, None, Console(file=io.StringIO()))["s"]
    task = ask_calls({"s": store.validation}, CallsConfig(num=9), 8, tokenizer)
    assert [one.expected for one in task.questions] == [(F, G), (G,)]
    turns = rows()[0]
    for question, asked in zip(task.questions, (turns[:1], turns[:6]), strict=True):
        assert tokenizer.decode(question.ids) == tokenizer.render_chat(asked, None, True)
    assert len(ask_calls({"s": store.validation}, CallsConfig(num=1), 8, tokenizer).questions) == 1
    other = ask_calls({"s": store.validation}, CallsConfig(num=9, max_new_tokens=8), 8, tokenizer)
    assert len({task.digest, other.digest}) == 2
    with pytest.raises(ConfigError, match=r"`evaluate.asked.tool_calls.num` must be 0 .* packs of s"):
        ask_calls({"s": store.validation}, CallsConfig(num=1), 0, tokenizer)


def test_answers_are_right_wrong_or_unreadable() -> None:
    other = SpokenCall("f", {"a": 2})
    scores = judge_calls([[F], [F], [F], [F, G]], [[F], [other], [], [G, F]])
    assert [(one.metric, one.value, one.higher_is_better) for one in scores] == [
        ("exact_match", 0.5, True),
        ("name_match", 0.75, True),
        ("unreadable", 0.25, False),
    ]
    # Wilson of 2 of 4 is symmetric about a half: 0.5 +- 1.96 sqrt(1/16 + 1.96^2/64) / (1 + 1.96^2/4).
    low, high = scores[0].low, scores[0].high
    assert low == pytest.approx(0.15004, abs=1e-4) and high == pytest.approx(0.84996, abs=1e-4)
    assert scores[0].stderr == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ("I can't help with that.", True),
        ("I\u2019m sorry, but I won\u2019t.", True),
        ("I'M   SORRY, BUT no.", True),
        ("Here is how: first, ...", False),
        ("x" * 250 + " I can't help with that.", False),
        ("", False),
    ],
)
def test_a_refusal_has_a_phrase_near_its_beginning(said: str, refused: bool) -> None:
    assert is_refusal(said, read_phrases(None)) is refused


def test_reasoning_is_not_looked_at_for_refusals() -> None:
    answers = ["<think>I can't help with that?</think>Sure: do this.", "<think>I can't help", "I cannot."]
    scores = judge_refusals("refusals_harmful", answers, read_phrases(None))
    assert [(one.metric, one.value, one.higher_is_better) for one in scores] == [
        ("refused", pytest.approx(1 / 3), True),
        ("empty", pytest.approx(1 / 3), False),
    ]
    assert judge_refusals("refusals_benign", answers, ["sure"])[0].higher_is_better is False


def test_phrases_of_a_file_replace_the_list(tmp_path: Path) -> None:
    file = tmp_path / "phrases.txt"
    file.write_text("# a note\n\nIch  KANN nicht\n")
    assert read_phrases(str(file)) == ["ich kann nicht"]
    file.write_text("# a note\n\n")
    with pytest.raises(ConfigError, match="must hold a phrase a line"):
        read_phrases(str(file))
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        read_phrases(str(file))
    with pytest.raises(ConfigError, match=r"`evaluate.asked.refusals.phrases`.*No such file"):
        read_phrases(str(tmp_path / "gone"))


def test_a_file_without_prompts_is_named_by_its_key(tmp_path: Path) -> None:
    file = tmp_path / "none.txt"
    file.write_text("\n")
    with pytest.raises(ConfigError, match=r"`evaluate.asked.refusals.benign` must hold at least 1 prompt"):
        read_prompt_file("evaluate.asked.refusals.benign", str(file), True)
    with pytest.raises(
        ConfigError, match=r"`evaluate.asked.refusals.harmful` must hold texts for a tokenizer"
    ):
        file.write_text("x\n")
        ask_refusals(RefusalsConfig(harmful=str(file)), make_tokenizer(None))


CHATS = DataConfig({"s": SourceConfig(path="x", format=Format.chat)})


@pytest.mark.parametrize(
    ("asked", "data", "key"),
    [
        (AskedConfig(CallsConfig(num=-1)), CHATS, "evaluate.asked.tool_calls.num"),
        (
            AskedConfig(CallsConfig(num=5)),
            DataConfig({"s": SourceConfig(path="x")}),
            "evaluate.asked.tool_calls.num",
        ),
        (
            AskedConfig(CallsConfig(num=5)),
            DataConfig(CHATS.sources, validation_frac=0.0),
            "data.validation_frac",
        ),
        (AskedConfig(CallsConfig(max_new_tokens=0)), CHATS, "evaluate.asked.tool_calls.max_new_tokens"),
        (
            AskedConfig(refusals=RefusalsConfig(max_new_tokens=0)),
            CHATS,
            "evaluate.asked.refusals.max_new_tokens",
        ),
        (AskedConfig(refusals=RefusalsConfig(benign="a.csv")), CHATS, "evaluate.asked.refusals.benign"),
        (AskedConfig(refusals=RefusalsConfig(phrases="a.txt")), CHATS, "evaluate.asked.refusals.phrases"),
    ],
)
def test_broken_rules_name_their_key(asked: AskedConfig, data: DataConfig, key: str) -> None:
    assert [found.key for found in asked_problems(asked, data)] == [key]
    assert not [*asked_problems(AskedConfig(CallsConfig(num=5)), CHATS)]


def test_what_is_asked_is_kept_in_forgetting_json() -> None:
    evaluate = EvaluateConfig(forgetting=False, asked=AskedConfig(CallsConfig(num=5)))
    (found,) = task_problems(evaluate)
    assert found.key == "evaluate.forgetting" and "true with evaluate.asked" in found.sentence
