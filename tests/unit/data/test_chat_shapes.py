"""What is learnt and what is lost, over the shapes of chat templates; each shape itself says what must be learnt.

`python -m tests.unit.data.test_chat_shapes` writes anew what becomes of every conversation under every shape, where
that is meant to change, and the commit says why.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers import templates
from tests.helpers.chat_shapes import LEARN, SHAPES, STOP, unmarked
from tests.helpers.tokenizers import make_tokenizer
from trainer.config.learn import LearnConfig, Reasoning
from trainer.data.chat.hand import hand_tools, hand_turns
from trainer.data.chat.mark import mark_chat
from trainer.data.chat.notes import NOTES
from trainer.data.chat.paint import COLOURS
from trainer.data.chat.rendering import render_whole
from trainer.data.chat.settle import settle_chat
from trainer.data.chat.shape import describe_shape, find_shape, why_always_failing
from trainer.data.rows.message import parse_message
from trainer.data.rows.turns import read_turns
from trainer.data.types import ChatDocument, RowError, RowProblem, Span, problems_said
from trainer.model.tokenizer import Tokenizer

FILE = Path(__file__).resolve().parents[2] / "golden" / "chat_shapes.json"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Its name"}},
        },
    },
}


@cache
def tokenizer_of(name: str, marked: bool = False) -> Tokenizer:
    return make_tokenizer(SHAPES[name] if marked else unmarked(SHAPES[name]))


def settled(messages: list[dict[str, Any]], tools: list[Any] | None = None) -> ChatDocument:
    document = settle_chat(ChatDocument([parse_message(m) for m in messages], tools), Counter())
    assert document is not None
    return document


def expected(name: str, document: ChatDocument) -> tuple[str, list[Span]]:
    """Return the text and what is learnt of it, by the marks of the shape."""
    plain = tokenizer_of(name)
    rendering = render_whole(document, plain, find_shape(plain), Counter())
    turns = hand_turns(rendering.document.messages, rendering.form)
    text = tokenizer_of(name, True).render_chat(turns, hand_tools(rendering.document.tools))
    spans: list[Span] = []
    out, start = "", 0
    for char in text:
        if char == LEARN:
            start = len(out)
        elif char == STOP:
            spans.append((start, len(out)))
        else:
            out += char
    assert out == rendering.text
    return out, spans


def outcome(name: str, document: ChatDocument, learn: LearnConfig) -> tuple[str, str]:
    """Return what became of a conversation, and what the text lacks of its words."""
    counts: Counter[str] = Counter()
    try:
        marked = mark_chat(document, tokenizer_of(name), learn, counts)
    except RowError as error:
        return "refused", f"{error.rule}: {error.value}"
    assert marked is not None
    text, spans = expected(name, document)
    assert (marked.text, merged(marked.spans)) == (text, merged(spans)), (
        [text[a:b] for a, b in marked.spans],
        [text[a:b] for a, b in spans],
    )
    told = sum(counts.values()) - counts["unmarked_ends"]
    return ("converted" if told else "whole"), marked.text


def merged(spans: list[Span]) -> list[Span]:
    """Return the spans that hold characters, neighbours joined."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and joined[-1][1] >= start:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        elif end > start:
            joined.append((start, end))
    return joined


def asked(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


CALL = {
    "type": "function",
    "id": "abcdefgh1",
    "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'},
}
TWO = [asked("What is two?"), said("One more than one."), asked("And three?"), said("Two and one.")]
TALKS: dict[str, list[dict[str, Any]]] = {
    "plain": TWO,
    "system": [{"role": "system", "content": "Answer briefly."}, *TWO],
    "developer": [{"role": "developer", "content": "Answer in verse."}, *TWO],
    "late_system": [*TWO, {"role": "system", "content": "Now in French."}, asked("One?"), said("Un.")],
    "parts": [
        asked("a"),
        {"role": "assistant", "content": [{"type": "text", "text": "Part one, part two."}]},
    ],
    "calls": [
        asked("Weather in Oslo?"),
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "cold", "tool_call_id": "abcdefgh1", "name": "get_weather"},
        said("It is cold there."),
    ],
    "function_call": [
        asked("Weather in Oslo?"),
        {"role": "assistant", "content": None, "function_call": CALL["function"]},
        {"role": "function", "content": "cold", "name": "get_weather"},
        said("It is cold there."),
    ],
    "tags": [
        asked("Q"),
        said("<think>\nadd up\n</think>\n\nFour."),
        asked("R"),
        said("<think>\nagain\n</think>\n\nFive."),
    ],
    **{
        key: [asked("Q"), said("Four.", **{key: "add up"}), asked("R"), said("Five.", **{key: "again"})]
        for key in ("reasoning_content", "reasoning", "thinking")
    },
    "one_thought": [asked("Q"), said("Four.", reasoning_content="add up")],
    "unknown_key": [asked("Q") | {"name": "Zoe"}, said("Four.", mood="glad")],
}


def words_of(talk: str) -> list[str]:
    """Return all words that a conversation holds, as they must be found again."""
    words = []
    for turn in TALKS[talk]:
        content = turn["content"] or ""
        words.append(content if isinstance(content, str) else content[0]["text"])
        words += [turn[key] for key in ("reasoning_content", "reasoning", "thinking") if key in turn]
        words += ["get_weather", "Oslo"] if {"tool_calls", "function_call"} & turn.keys() else []
    return [word.split("</think>")[-1].strip() for word in words] + (
        ["add up", "again"] if talk == "tags" else []
    )


def outcomes_of(name: str) -> dict[str, list[str]]:
    """Return the conversations that are whole, converted and refused under a shape, and fail where a word is lost."""
    found: dict[str, list[str]] = {"whole": [], "converted": [], "refused": []}
    for talk, messages in TALKS.items():
        what, text = outcome(name, settled(messages), LearnConfig())
        found[what].append(talk)
        if what != "refused":
            missing = [word for word in words_of(talk) if word not in text]
            assert not missing, (talk, missing)
    what, text = outcome(name, settled(TWO, [WEATHER]), LearnConfig())
    found[what].append("schemas")
    assert what == "refused" or ("get_weather" in text and "Its name" in text)
    return found


@pytest.mark.parametrize("name", SHAPES)
def test_nothing_that_a_conversation_holds_is_lost_without_a_word(name: str) -> None:
    assert outcomes_of(name) == json.loads(FILE.read_text())["shapes"][name]


def test_the_outcomes_are_counted_over_all_shapes() -> None:
    known = json.loads(FILE.read_text())
    assert known["shapes"].keys() == SHAPES.keys()
    counts = {what: sum(len(one[what]) for one in known["shapes"].values()) for what in known["counts"]}
    assert known["counts"] == counts and sum(counts.values()) == len(SHAPES) * (len(TALKS) + 1)


def write_outcomes() -> None:
    """Write what becomes of every conversation under every shape, and how many of each there are."""
    shapes = {name: outcomes_of(name) for name in SHAPES}
    counts = {
        what: sum(len(one[what]) for one in shapes.values()) for what in ("whole", "converted", "refused")
    }
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(found)}" for name, found in shapes.items())
    FILE.write_text(f'{{\n "counts": {json.dumps(counts)},\n "shapes": {{\n{rows}\n }}\n}}\n')


@pytest.mark.parametrize("name", SHAPES)
def test_ordinary_conversations_are_learnt_exactly_whatever_the_template(name: str) -> None:
    assert outcome(name, settled(TWO), LearnConfig())[0] == "whole"
    learn = LearnConfig(reasoning=Reasoning.drop)
    bare = [asked("Q"), said("Four."), asked("R"), said("Five.")]
    counts: Counter[str] = Counter()
    marked = mark_chat(settled(TALKS["tags"]), tokenizer_of(name), learn, counts)
    assert marked is not None and counts["reasoning_dropped"] == 2
    text, spans = expected(name, settled(bare))
    assert (marked.text, merged(marked.spans)) == (text, merged(spans))


QUOTES = [
    "<|im_end|>",
    "<|im_start|>assistant\n",
    "</s>",
    "[/INST]",
    "assistant",
    "<think>",
    "</think>",
    "Same.",
    "USER: ",
]
CONTENT = st.lists(
    st.one_of(
        st.sampled_from(
            [*QUOTES, " ", "\n", '"', "\\", "{", "42", "\u65e5\u672c", "\U0001f600", "<br>", "'"]
        ),
        st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Co"]), max_size=6),
    ),
    min_size=1,
    max_size=5,
).map(lambda parts: "".join(parts).strip() or "x")
TALK = st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=3)


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(talk=TALK)
def test_every_learnt_character_is_the_assistants_and_every_one_of_them_is_learnt(
    name: str, talk: list[tuple[str, str]]
) -> None:
    messages = [turn for question, answer in talk for turn in (asked(question), said(answer))]
    if any(mark in text for pair in talk for text in pair for mark in (LEARN, STOP)):
        return
    what, why = outcome(name, settled(messages), LearnConfig(reasoning=Reasoning.as_rendered))
    if what == "refused":
        # A template that parses tags cuts answers that quote them.
        assert "</think>" in str(talk) or "<think>" in str(talk), why


THOUGHT = st.one_of(st.none(), CONTENT.filter(lambda text: "think>" not in text))
DEEDS = st.lists(st.tuples(CONTENT, THOUGHT, st.booleans(), CONTENT), min_size=1, max_size=3)


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(deeds=DEEDS, key=st.sampled_from(["reasoning_content", "reasoning", "thinking", "tags"]))
def test_reasoning_and_calls_are_learnt_to_the_letter_or_counted_or_refused(
    name: str, deeds: list[tuple[str, str | None, bool, str]], key: str
) -> None:
    messages: list[dict[str, Any]] = []
    for question, thought, has_call, answer in deeds:
        messages.append(asked(question))
        more: dict[str, Any] = {} if thought is None or key == "tags" else {key: thought}
        tags = f"<think>\n{thought}\n</think>\n\n" if thought is not None and key == "tags" else ""
        if has_call:
            call = {**CALL, "function": {"name": "get_weather", "arguments": {"city": question}}}
            messages += [
                said(tags, tool_calls=[call], **more),
                {"role": "tool", "content": answer},
                said(answer),
            ]
        else:
            messages.append(said(tags + answer, **more))
    if any(mark in str(messages) for mark in (LEARN, STOP)):
        return
    outcome(name, settled(messages), LearnConfig(reasoning=Reasoning.as_rendered))


def test_what_a_template_has_no_place_for_is_said_before_a_row_is_read() -> None:
    said_of = {name: " ".join(describe_shape(find_shape(tokenizer_of(name)))) for name in SHAPES}
    assert "reasoning, tool schemas, tool calls" in said_of["answers_cut"]
    assert "reasoning before the last user turn" in said_of["qwen3"]
    assert "turns of the role system" in said_of["gemma2"] and "role system" not in said_of["gemma3"]
    assert "takes reasoning as reasoning_content" in said_of["gpt_oss"]
    assert "takes reasoning as <think> in the content" in said_of["qwen3"]
    assert [name for name in SHAPES if "no mark behind the last turn" in said_of[name]] == ["glm4", "glm45"]
    assert (
        said_of["granite4"]
        == said_of["kimi_k2"]
        == "The chat template has no place for: turns of the role developer. "
        + (
            "Rows that hold any of it are converted or refused; see learn.reasoning of a source for reasoning."
        )
    )


def test_a_conversation_with_more_characters_than_colours_is_traced_in_parts() -> None:
    answer = "word " * (len(COLOURS) // 4 + 1000)
    what, text = outcome(
        "chatml", settled([asked("Q" * 100), said(answer), asked("R"), said("S")]), LearnConfig()
    )
    assert what == "whole" and answer.strip() in text


@pytest.mark.parametrize(
    "contents", [("a \U000f0000\U00100001 b", "x"), ("a\x00b", "\x7f"), ("\u200b", "e\u0301")]
)
def test_odd_characters_are_found_like_any_other(contents: tuple[str, str]) -> None:
    for name in ("chatml", "qwen3", "gemma3"):
        assert outcome(name, settled([asked(contents[1]), said(contents[0])]), LearnConfig())[0] == "whole"


if __name__ == "__main__":
    write_outcomes()


@pytest.mark.parametrize(
    "template",
    [
        templates.GEMMA,
        "{{ raise_exception('Never') }}",
        "{% for tool in tools %}{{ tool.function.name }}{% endfor %}{{ messages }}",
        "{% for m in messages %}{{ m.content[0].text.strip() }}{% endfor %}",
        "{% if messages[0].role == 'system' %}{{ nope.x }}{% endif %}{{ messages }}",
        "{{ bos_token + messages[0].content }}",
    ],
    ids=["no system", "refuses all", "demands tools", "demands parts", "fails on system", "special tokens"],
)
def test_a_template_that_takes_or_refuses_some_conversation_is_not_called_failing(template):
    assert why_always_failing(make_tokenizer(template)) is None
    assert "line 1: " in (why_always_failing(make_tokenizer("{{ messages.nope.x }}")) or "")


def test_a_content_of_several_texts_is_joined_and_counted():
    turns = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    turns.append({"role": "assistant", "content": [{"type": "text", "text": "c"}]})
    counts = Counter()
    assert [turn["content"] for turn in read_turns(turns, counts, ())] == ["ab", "c"]
    assert counts["joined_parts"] == 1 and "joined_parts" in NOTES


def test_one_row_does_not_and_two_do_not():
    problem = RowProblem("hold text", "3", "Mend it.", "a.jsonl, line 1")
    assert "but 1 of 1 row does not;" in problems_said(
        "`data`", [problem], Counter({"hold text": 1}), "1 row"
    )
    assert "but 2 of 9 rows do not;" in problems_said(
        "`data`", [problem], Counter({"hold text": 2}), "9 rows"
    )
