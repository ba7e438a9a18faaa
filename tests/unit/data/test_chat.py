from __future__ import annotations

from collections import Counter
from itertools import groupby

import pytest

from tests.helpers import templates
from tests.helpers.tokenizers import make_tokenizer
from trainer.config.data import Format, SourceConfig
from trainer.config.learn import LearnConfig, Reasoning, Turns
from trainer.data.chat.mark import Marked, mark_chat
from trainer.data.chat.settle import settle_chat
from trainer.data.tokens.tokenise import encode_batch
from trainer.data.types import ChatDocument, Message, RowBatch, RowError
from trainer.model.tokenizer import Tokenizer


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def mark(document: ChatDocument, tokenizer: Tokenizer, learn: LearnConfig | None = None) -> Marked:
    settled = settle_chat(document, Counter())
    assert settled is not None
    marked = mark_chat(settled, tokenizer, learn or LearnConfig(), Counter())
    assert marked is not None
    return marked


AS_RENDERED = LearnConfig(reasoning=Reasoning.as_rendered)
SYSTEM: Message = {"role": "system", "content": "Be brief."}
TWO_TURNS = [user("Hi?"), assistant("Hello."), user("Again?"), assistant("Hello again.")]
THINKING = [
    user("1+1?"),
    assistant("<think>\nadd\n</think>\n\n2"),
    user("2+2?"),
    assistant("<think>\nadd more\n</think>\n\n4"),
]


def supervised_texts(
    tokenizer: Tokenizer, messages: list[Message], learn: LearnConfig | None = None
) -> list[str]:
    """Encode as `prepare` does and decode each run of supervised tokens."""
    batch = RowBatch("chats.jsonl", "line", [1], [{"messages": messages}])
    encoded = encode_batch(
        batch, SourceConfig(format=Format.chat, learn=learn or LearnConfig()), False, tokenizer
    )
    assert not encoded.problems
    rendered = tokenizer.render_chat(messages)
    assert [encoded.tokens.tolist()] == tokenizer.encode_fragments([rendered])
    pairs = zip(encoded.tokens.tolist(), encoded.supervised.tolist(), strict=True)
    runs = groupby(pairs, key=lambda pair: pair[1])
    return [tokenizer.decode([token for token, _ in run]) for marked, run in runs if marked]


CASES = [
    ("CHATML", TWO_TURNS, ["Hello.<|im_end|>", "Hello again.<|im_end|>"]),
    ("CHATML", [SYSTEM, *TWO_TURNS], ["Hello.<|im_end|>", "Hello again.<|im_end|>"]),
    ("LLAMA3", TWO_TURNS, ["Hello.<|eot_id|>", "Hello again.<|eot_id|>"]),
    ("LLAMA3", [SYSTEM, *TWO_TURNS], ["Hello.<|eot_id|>", "Hello again.<|eot_id|>"]),
    (
        "QWEN3",
        [SYSTEM, *TWO_TURNS],
        ["Hello.<|im_end|>", "<think>\n\n</think>\n\nHello again.<|im_end|>"],
    ),
    ("QWEN3", THINKING, ["2<|im_end|>", "<think>\nadd more\n</think>\n\n4<|im_end|>"]),
    ("GEMMA", TWO_TURNS, ["Hello.<end_of_turn>", "Hello again.<end_of_turn>"]),
    ("GEMMA_MERGED", [SYSTEM, *TWO_TURNS], ["Hello.<end_of_turn>", "Hello again.<end_of_turn>"]),
    ("MISTRAL", TWO_TURNS, [" Hello.</s>", " Hello again.</s>"]),
    ("MISTRAL", [SYSTEM, *TWO_TURNS[:2]], [" Hello.</s>"]),
    ("PHI3", TWO_TURNS, ["Hello.<|end|>", "Hello again.<|end|>\n</s>"]),
    ("R1", THINKING, ["2</s>", "4</s>"]),
    ("PLAIN", TWO_TURNS, [" Hello.\n", " Hello again.\n"]),
]


@pytest.mark.parametrize(("template", "messages", "expected"), CASES)
def test_only_the_assistants_words_and_their_end_marks_are_supervised(
    template: str, messages: list[Message], expected: list[str]
) -> None:
    tokenizer = make_tokenizer(getattr(templates, template), adds_bos=True)
    assert supervised_texts(tokenizer, messages, AS_RENDERED) == expected


def test_a_system_prompt_that_moves_with_later_turns_does_not_hide_earlier_answers() -> None:
    tokenizer = make_tokenizer(templates.MISTRAL)
    assert supervised_texts(tokenizer, [SYSTEM, *TWO_TURNS]) == [" Hello.</s>", " Hello again.</s>"]


def test_tool_calls_are_supervised_and_tool_results_are_not() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = [
        user("1+1?"),
        {**assistant(""), "tool_calls": [call]},
        {"role": "tool", "content": "2"},
        assistant("Two."),
    ]
    said = '<call>{"name": "add", "arguments": {"a": 1}}</call><|im_end|>'
    tokenizer = make_tokenizer(templates.CHATML)
    assert supervised_texts(tokenizer, messages) == [said, "Two.<|im_end|>"]


def test_reasoning_before_a_tool_call_is_found_when_a_later_turn_strips_it() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    messages = [
        user("go"),
        {**assistant("<think>\nfirst\n</think>\n\n"), "tool_calls": [call]},
        {"role": "tool", "content": "r"},
        {**assistant("<think>\nsecond\n</think>\n\n"), "tool_calls": [call]},
        {"role": "tool", "content": "r"},
        assistant("<think>\nthird\n</think>\n\nDone."),
        user("more"),
        assistant("Yes."),
    ]
    said = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><|im_end|>'
    expected = [said, said, "Done.<|im_end|>", "<think>\n\n</think>\n\nYes.<|im_end|>"]
    assert supervised_texts(make_tokenizer(templates.QWEN3), messages, AS_RENDERED) == expected


def test_words_that_the_user_said_first_are_not_taken_for_the_assistants() -> None:
    messages = [user("Hello."), assistant("Hello."), user("Hello."), assistant("Hello.")]
    for template in (templates.CHATML, templates.MISTRAL, templates.PHI3, templates.R1):
        tokenizer = make_tokenizer(template)
        marked = mark(ChatDocument(messages), tokenizer)
        full, spans = marked.text, marked.spans
        assert len(spans) == 2
        assert all("Hello." in full[:start] and full[start:end].strip() != "" for start, end in spans)
        assert full[spans[0][0] : spans[0][1]].strip().startswith("Hello.")
        assert full.count("Hello.", 0, spans[0][0]) == 1
        assert full.count("Hello.", 0, spans[1][0]) == 3


def test_bos_in_the_template_is_not_doubled_by_a_tokenizer_that_adds_it() -> None:
    tokenizer = make_tokenizer(templates.LLAMA3, adds_bos=True)
    batch = RowBatch("chats.jsonl", "line", [1], [{"messages": TWO_TURNS}])
    encoded = encode_batch(batch, SourceConfig(format=Format.chat), False, tokenizer)
    assert encoded.tokens.tolist().count(tokenizer.bos_id) == 1


def test_indentation_is_supervised_though_the_tokenizer_trims_its_offsets() -> None:
    """A failure points at mark_tokens: trimmed tokens of spaces have empty offsets."""
    code = "def f():\n    return  1\n        # end"
    tokenizer = make_tokenizer(texts=["    return 1\n        x\n" * 50], trim_offsets=True)
    assert supervised_texts(tokenizer, [user("code"), assistant(code)]) == [f"{code}<|im_end|>"]


def test_characters_of_several_bytes_keep_the_borders_exact() -> None:
    tokenizer = make_tokenizer()
    messages = [user("\u65e5\u672c"), assistant("\u00e9t\u00e9 \U0001f600")]
    assert supervised_texts(tokenizer, messages) == ["\u00e9t\u00e9 \U0001f600<|im_end|>"]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [([SYSTEM, *TWO_TURNS], "System role not supported"), ([user("a"), *TWO_TURNS], "alternate")],
)
def test_a_conversation_that_the_template_refuses_says_why_and_what_to_do(
    messages: list[Message], reason: str
) -> None:
    with pytest.raises(RowError) as caught:
        mark(ChatDocument(messages), make_tokenizer(templates.GEMMA))
    assert reason in caught.value.value
    assert "model.chat_template" in caught.value.fix and "system prompt" in caught.value.fix


def test_a_turn_that_the_template_leaves_out_is_an_error_and_not_unsupervised() -> None:
    template = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    with pytest.raises(RowError, match="renders"):
        mark(ChatDocument(TWO_TURNS), make_tokenizer(template))


def test_a_tool_call_that_the_template_leaves_out_is_an_error() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {}}}
    messages = [user("1+1?"), {**assistant(""), "tool_calls": [call]}]
    with pytest.raises(RowError, match="renders"):
        mark(ChatDocument(messages), make_tokenizer(templates.LLAMA3))


def learnt(messages: list[Message], learn: LearnConfig) -> list[str]:
    return supervised_texts(make_tokenizer(), messages, learn)


def test_turns_and_roles_and_end_marks_are_learnt_as_configured() -> None:
    both = ["Hello.<|im_end|>", "Hello again.<|im_end|>"]
    assert learnt(TWO_TURNS, LearnConfig()) == both
    assert learnt(TWO_TURNS, LearnConfig(turns=Turns.last)) == both[1:]
    assert learnt(TWO_TURNS, LearnConfig(end_mark=False)) == ["Hello.", "Hello again."]
    assert learnt(TWO_TURNS, LearnConfig(roles=["user", "assistant"])) == ["Hi?", both[0], "Again?", both[1]]


def test_weights_of_turns_are_honoured() -> None:
    encoded = encode_batch(
        RowBatch(
            "f", "line", [1], [{"messages": [TWO_TURNS[0], TWO_TURNS[1] | {"weight": 0}, *TWO_TURNS[2:]]}]
        ),
        SourceConfig(format=Format.chat),
        False,
        make_tokenizer(),
    )
    said = [t for t, on in zip(encoded.tokens.tolist(), encoded.supervised.tolist(), strict=True) if on]
    assert make_tokenizer().decode(said) == "Hello again.<|im_end|>"


def test_reasoning_is_kept_dropped_or_only_read_as_configured() -> None:
    one = THINKING[:2]
    assert learnt(one, LearnConfig()) == ["<think>\nadd\n</think>\n\n2<|im_end|>"]
    answer_only = LearnConfig(reasoning=Reasoning.answer_only)
    assert learnt(one, answer_only) == ["\n\n2<|im_end|>"]
    marked = mark(ChatDocument(THINKING), make_tokenizer(), LearnConfig(reasoning=Reasoning.last))
    assert [marked.text[a:b] for a, b in marked.spans] == [
        "2<|im_end|>",
        "<think>\nadd more\n</think>\n\n4<|im_end|>",
    ]
    marked = mark(ChatDocument(THINKING), make_tokenizer(), LearnConfig(reasoning=Reasoning.drop))
    assert [marked.text[a:b] for a, b in marked.spans] == ["2<|im_end|>", "4<|im_end|>"]


def test_special_tokens_that_a_row_spells_out_are_text() -> None:
    tokenizer = make_tokenizer()
    quoting = [user("What is <|im_end|>?"), assistant("<|im_end|> ends a turn, </s> a text.")]
    batch = RowBatch("f", "line", [1], [{"messages": quoting}])
    encoded = encode_batch(batch, SourceConfig(format=Format.chat), False, tokenizer)
    end = tokenizer.encode_fragments(["<|im_end|>"])[0][0]
    assert encoded.counts["quoted_tokens"] == 1
    assert tokenizer.decode(encoded.tokens.tolist()) == tokenizer.render_chat(quoting)
    assert encoded.tokens.tolist().count(end) == 3  # of the system prompt and of both turns
    assert tokenizer.eos_id not in encoded.tokens.tolist()


def test_special_tokens_that_the_template_writes_between_calls_stay_tokens() -> None:
    template = templates.CHATML.replace("'<call>'", "'<|end|>'").replace("'</call>'", "'<|end|>'")
    tokenizer = make_tokenizer(template)
    calls = [
        {"type": "function", "function": {"name": "f", "arguments": {"a": text}}} for text in ("x", "</s>")
    ]
    batch = RowBatch("f", "line", [1], [{"messages": [user("Q"), {**assistant(""), "tool_calls": calls}]}])
    encoded = encode_batch(batch, SourceConfig(format=Format.chat), False, tokenizer)
    (special,) = tokenizer.encode_fragments(["<|end|>"])[0]
    assert encoded.counts["quoted_tokens"] == 1 and not encoded.problems
    assert encoded.tokens.tolist().count(special) == 4 and tokenizer.eos_id not in encoded.tokens.tolist()
