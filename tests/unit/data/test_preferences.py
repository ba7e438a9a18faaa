"""Rows of preferences: every layout in use becomes the same pair, whose answers begin with the same tokens."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.helpers import templates
from tests.helpers.preferences import read_rows
from tests.helpers.tokenizers import BOS, make_tokenizer
from trainer.config.data import CleanConfig, Format, SourceConfig, TokenValue
from trainer.data.store.held_back import split_hash
from trainer.data.tokens.tokenise import encode_batch
from trainer.data.types import RowBatch

CHAT = make_tokenizer()
SYSTEM = "<|im_start|>system\nBe kind.<|im_end|>\n"
ASKED = "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n"
GOOD, BAD = ["Hello.<|im_end|>"], ["Go away.<|im_end|>"]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def human(text):
    return {"from": "human", "value": text}


def gpt(text):
    return {"from": "gpt", "value": text}


LAYOUTS = {
    "TRL, texts": {"prompt": "Hi?", "chosen": "Hello.", "rejected": "Go away."},
    "TRL, turns": {
        "prompt": [user("Hi?")],
        "chosen": [assistant("Hello.")],
        "rejected": [assistant("Go away.")],
    },
    "TRL, implicit prompt": {
        "chosen": [user("Hi?"), assistant("Hello.")],
        "rejected": [user("Hi?"), assistant("Go away.")],
    },
    "a prompt that the conversations repeat": {
        "prompt": "Hi?",
        "chosen": [user("Hi?"), assistant("Hello.")],
        "rejected": [user("Hi?"), assistant("Go away.")],
    },
    "OpenAI": {
        "input": {"messages": [user("Hi?")], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [assistant("Hello.")],
        "non_preferred_output": [assistant("Go away.")],
    },
    "ShareGPT": {"conversations": [human("Hi?")], "chosen": gpt("Hello."), "rejected": gpt("Go away.")},
    "ms-swift": {"messages": [user("Hi?"), assistant("Hello.")], "rejected_response": "Go away."},
    "ms-swift, turns": {
        "messages": [user("Hi?"), assistant("Hello.")],
        "rejected_messages": [user("Hi?"), assistant("Go away.")],
    },
    "Axolotl, messages": {
        "messages": [user("Hi?")],
        "chosen": assistant("Hello."),
        "rejected": assistant("Go away."),
    },
    "Argilla": {"instruction": "Hi?", "chosen_response": "Hello.", "rejected_response": "Go away."},
    "Alpaca": {"instruction": "Hi?", "input": "", "chosen": "Hello.", "rejected": "Go away."},
    "Intel": {"question": "Hi?", "chosen": "Hello.", "rejected": "Go away."},
    "NeMo-RL": {
        "context": [user("Hi?")],
        "completions": [
            {"rank": 1, "completion": [assistant("Go away.")]},
            {"rank": 0, "completion": [assistant("Hello.")]},
        ],
        "task_name": "hello",
    },
    "HH-RLHF": {
        "chosen": "\n\nHuman: Hi?\n\nAssistant: Hello.",
        "rejected": "\n\nHuman: Hi?\n\nAssistant: Go away.",
    },
}


@pytest.mark.parametrize("row", LAYOUTS.values(), ids=list(LAYOUTS))
def test_every_layout_becomes_the_same_pair(row):
    read = read_rows([row], CHAT)
    assert not read.problems and read.dropped == {}
    assert read.only == (SYSTEM + ASKED, [GOOD, BAD])
    assert read.batch is not None and read.batch.unit_pieces.tolist() == [2]
    assert read.batch.places == ["rows.jsonl, line 1"]


def test_columns_of_other_names_are_named():
    row = {"ask": "Hi?", "best": "Hello.", "worst": "Go away."}
    read = read_rows([row], CHAT, prompt="ask", chosen="best", rejected="worst")
    assert read.only == (SYSTEM + ASKED, [GOOD, BAD])
    ranked = {
        "ask": "Hi?",
        "both": [{"rank": 1, "completion": "Hello."}, {"rank": 2, "completion": "Go away."}],
    }
    assert read_rows([ranked], CHAT, prompt="ask", completions="both").only == (SYSTEM + ASKED, [GOOD, BAD])


UNPAIRED = {
    "TRL": {"prompt": [user("Hi?")], "completion": [assistant("Hello.")], "label": True},
    "TRL, texts": {"prompt": "Hi?", "completion": "Hello.", "label": 1},
    "ShareGPT": {"conversations": [human("Hi?"), gpt("Hello.")], "kto_tag": True},
    "ms-swift": {"messages": [user("Hi?"), assistant("Hello.")], "label": "true"},
    "HH-RLHF": {"completion": "\n\nHuman: Hi?\n\nAssistant: Hello.", "label": True},
}


@pytest.mark.parametrize("row", UNPAIRED.values(), ids=list(UNPAIRED))
def test_answers_with_labels_carry_them_on_what_is_learnt(row):
    label = "kto_tag" if "kto_tag" in row else "label"
    rows = [row, {**row, label: False}]
    read = read_rows(rows, CHAT, Format.unpaired, values=(TokenValue.label,))
    assert not read.problems
    assert read.units == [(SYSTEM + ASKED, [GOOD])] * 2
    batch = read.batch
    assert batch is not None and batch.unit_pieces.tolist() == [1, 1]
    first, second = batch.values["label"].reshape(2, -1)
    learnt = batch.supervised.reshape(2, -1)
    assert (first == learnt[0]).all() and (second == -1.0 * learnt[1]).all()


def test_the_sides_of_a_pair_are_labelled_too():
    read = read_rows([LAYOUTS["TRL, texts"]], CHAT, values=(TokenValue.label,))
    assert read.batch is not None
    chosen, rejected = (read.batch.values["label"][part] for part in halves(read.batch))
    assert set(chosen.tolist()) == {0, 1} and set(rejected.tolist()) == {0, -1}


def halves(batch):
    first = int(batch.lengths[0])
    return slice(first), slice(first, None)


# ---- texts


def test_texts_that_are_no_chat_keep_their_characters_and_end_with_eos():
    tokenizer = make_tokenizer(None, adds_bos=True)
    row = {"prompt": "2+2=", "chosen": "4", "rejected": "5"}
    read = read_rows([row], tokenizer, as_chat=False, adds_eos=True)
    assert read.only == (BOS + "2+2=", [["4</s>"], ["5</s>"]])


def test_a_prompt_that_spells_bos_begins_with_one():
    tokenizer = make_tokenizer(None, adds_bos=True)
    row = {"prompt": BOS + "2+2=", "chosen": "4", "rejected": "5"}
    assert read_rows([row], tokenizer, as_chat=False).only[0] == BOS + "2+2="


def test_a_template_that_writes_bos_begins_with_one():
    tokenizer = make_tokenizer(templates.LLAMA3, adds_bos=True)
    prompt, answers = read_rows([LAYOUTS["TRL, texts"]], tokenizer).only
    assert prompt.count(BOS) == 1 and prompt.startswith(BOS)
    assert answers == [["Hello.<|eot_id|>"], ["Go away.<|eot_id|>"]]


def test_human_turns_without_a_chat_stay_as_they_are():
    row = {
        "chosen": "\n\nHuman: Hi?\n\nAssistant: Yes?\n\nHuman: Bye.\n\nAssistant: Bye.",
        "rejected": "\n\nHuman: Hi?\n\nAssistant: Yes?\n\nHuman: Bye.\n\nAssistant: No.",
    }
    prompt, answers = read_rows([row], make_tokenizer(None), as_chat=False).only
    assert prompt == "Human: Hi?\n\nAssistant: Yes?\n\nHuman: Bye.\n\nAssistant:"
    assert answers == [[" Bye."], [" No."]]


def test_tokens_that_would_reach_over_the_end_of_the_prompt_are_cut_there():
    """Where "Hello" is one token, "Hel" is no beginning of its tokens."""
    tokenizer = make_tokenizer(None, texts=["Hello"] * 50 + ["Hel"] * 20)
    prompt = tokenizer.encode_fragments(["Hel"])[0]
    assert tokenizer.encode_fragments(["Hello"])[0][: len(prompt)] != prompt
    row = {"prompt": "Hel", "chosen": "lo", "rejected": "met"}
    read = read_rows([row], tokenizer, as_chat=False)
    assert read.only == ("Hel", [["lo"], ["met"]])
    assert read.dropped == {"cut_prompts": 1}
    alike = {"prompt": "Hel", "chosen": "lo", "rejected": "lo!"}
    read = read_rows([alike], tokenizer, as_chat=False)
    assert read.only == ("Hel", [["lo"], ["lo!"]]), (
        "tokens reach over the end of the prompt in both answers alike"
    )


# ---- conversations


def test_a_system_prompt_tools_and_earlier_turns_are_part_of_the_prompt():
    earlier = [user("Hi?"), assistant("Yes?"), user("Bye.")]
    row = {
        "system": "Be brief.",
        "prompt": earlier,
        "chosen": [assistant("Bye.")],
        "rejected": [assistant("No.")],
    }
    prompt, answers = read_rows([row], CHAT).only
    assert prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n"
        "<|im_start|>assistant\nYes?<|im_end|>\n"
        "<|im_start|>user\nBye.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert answers == [["Bye.<|im_end|>"], ["No.<|im_end|>"]]


def test_tools_of_a_row_and_of_a_prompt_are_part_of_the_prompt():
    tokenizer = make_tokenizer("{{ tools | tojson if tools else '' }}\n" + templates.CHATML)
    tool = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {}}}
    of_row = {**LAYOUTS["TRL, turns"], "tools": [tool]}
    of_prompt = {**LAYOUTS["OpenAI"], "input": {"messages": [user("Hi?")], "tools": [tool]}}
    first, second = (read_rows([row], tokenizer).only for row in (of_row, of_prompt))
    assert first == second and '"name": "add"' in first[0] and first[1] == [GOOD, BAD]


def test_an_answer_of_several_turns_is_learnt_but_for_what_tools_say():
    call = {"type": "function", "id": "a", "function": {"name": "add", "arguments": {"x": 1}}}
    good = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "3", "tool_call_id": "a", "name": "add"},
        assistant("It is 3."),
    ]
    row = {"prompt": [user("1+2?")], "chosen": good, "rejected": [assistant("Four.")]}
    prompt, (chosen, rejected) = read_rows([row], CHAT).only
    assert prompt.endswith("<|im_start|>assistant\n")
    assert chosen[0].startswith("<call>") and chosen[1] == "It is 3.<|im_end|>" and len(chosen) == 2
    assert rejected == ["Four.<|im_end|>"]
    implicit = {"chosen": [user("1+2?"), *good], "rejected": [user("1+2?"), *good[:2], assistant("No idea.")]}
    prompt, answers = read_rows([implicit], CHAT).only
    assert prompt.endswith("3<|im_end|>\n<|im_start|>assistant\n"), (
        "the turns that both begin with are no answer"
    )
    assert answers == [["It is 3.<|im_end|>"], ["No idea.<|im_end|>"]]
    other = {"role": "tool", "content": "4", "tool_call_id": "a", "name": "add"}
    by_tool = {
        "chosen": [user("1+2?"), *good],
        "rejected": [user("1+2?"), good[0], other, assistant("It is 4.")],
    }
    prompt, (chosen, rejected) = read_rows([by_tool], CHAT).only
    assert prompt.endswith("1+2?<|im_end|>\n<|im_start|>assistant\n"), (
        "an answer begins with the assistant's turn"
    )
    assert chosen[1:] == ["It is 3.<|im_end|>"] and rejected[1:] == ["It is 4.<|im_end|>"]


def test_a_prompt_is_whole_turns_and_never_characters():
    """Both answers begin with the same words."""
    row = {
        "chosen": [user("Hi?"), assistant("Hello you.")],
        "rejected": [user("Hi?"), assistant("Hello.")],
    }
    assert read_rows([row], CHAT).only == (SYSTEM + ASKED, [["Hello you.<|im_end|>"], GOOD])


def test_turns_of_one_speaker_in_a_row_are_joined_where_a_text_has_them():
    row = {
        "chosen": "\n\nHuman: Hi?\n\nHuman: Still there?\n\nAssistant: Hello.",
        "rejected": "\n\nHuman: Hi?\n\nHuman: Still there?\n\nAssistant: Go away.",
    }
    read = read_rows([row], make_tokenizer(templates.GEMMA))
    assert "user\nHi?\n\nStill there?<end_of_turn>" in read.only[0]
    assert read.dropped == {"joined_turns": 2}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi?", "chosen": [assistant("Hello.")], "rejected": [assistant("Go away.")]},
        {"prompt": [user("Hi?")], "chosen": "Hello.", "rejected": assistant("Go away.")},
        {"chosen": [user("Hi?"), assistant("Hello.")], "rejected": [user("Hi?"), assistant("Go away.")]},
        {"prompt": {"messages": [user("Hi?")]}, "chosen": [assistant("Hello.")], "rejected": "Go away."},
    ],
    ids=["answers", "prompt", "conversations", "OpenAI"],
)
def test_turns_that_a_table_keeps_as_text_are_turns(row):
    """Read as text, a conversation would be learnt whole: its prompt, roles and brackets."""
    written = {key: value if isinstance(value, str) else json.dumps(value) for key, value in row.items()}
    assert read_rows([written], CHAT).only == (SYSTEM + ASKED, [GOOD, BAD])


def test_an_answer_that_is_json_but_no_turns_is_text():
    row = {"prompt": "Hi?", "chosen": '[{"name": "add"}]', "rejected": '{"x": 1}'}
    assert read_rows([row], CHAT).only[1] == [['[{"name": "add"}]<|im_end|>'], ['{"x": 1}<|im_end|>']]


# ---- what is dropped, whole, and counted

HELLO = [user("Hi?"), assistant("Hello.")]
DROPPED = {
    "equal_sides": [
        {"prompt": "Hi?", "chosen": "Hello.", "rejected": "Hello."},
        {"prompt": "Hi?", "chosen": "Hello.", "rejected": "Hello. "},
        {"chosen": HELLO, "rejected": HELLO},
        {"prompt": [user("Hi?")], "chosen": HELLO, "rejected": [assistant("Hello.")]},
    ],
    "empty_side": [
        {"prompt": "Hi?", "chosen": "Hello.", "rejected": ""},
        {"prompt": "Hi?", "chosen": None, "rejected": "Hello."},
        {"prompt": "Hi?", "chosen": [], "rejected": [assistant("Hello.")]},
        {"prompt": "Hi?", "chosen": [assistant(" ")], "rejected": [assistant("Hello.")]},
        {"chosen": HELLO, "rejected": [user("Hi?")]},
        {"chosen": "\n\nHuman: Hi?\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi?\n\nAssistant:"},
    ],
    "different_prompts": [
        {"chosen": HELLO, "rejected": [user("Ho?"), assistant("Hello.")]},
        {"prompt": "Hi?", "chosen": HELLO, "rejected": [user("Ho?"), assistant("Hello.")]},
        {"chosen": HELLO, "rejected": [user("Hi?"), assistant("What?"), user("Hi!"), assistant("Hello.")]},
        {"chosen": "\n\nHuman: Hi?\n\nAssistant: Hello.", "rejected": "\n\nHuman: Ho?\n\nAssistant: Hello."},
        {"prompt": "Hi?", "chosen": [{"role": "tool", "content": "3"}, assistant("3.")], "rejected": "No."},
    ],
    "no_prompt": [
        {"prompt": "", "chosen": [assistant("Hello.")], "rejected": [assistant("Go away.")]},
        {"chosen": "Hello.", "rejected": "Go away."},
    ],
    "tied_ranks": [
        {"prompt": "Hi?", "completions": [{"rank": 1, "completion": "A."}, {"rank": 1, "completion": "B."}]}
    ],
}


@pytest.mark.parametrize(
    ("cause", "row"), [(cause, row) for cause, rows in DROPPED.items() for row in rows], ids=str
)
def test_a_row_that_is_no_pair_is_dropped_whole_and_counted_by_its_cause(cause, row):
    columns = {"completions": "completions"} if "completions" in row else {}
    read = read_rows([row, *([] if columns else [LAYOUTS["TRL, texts"]])], CHAT, **columns)
    assert not read.problems
    assert read.dropped == {cause: 1}
    assert read.units == ([] if columns else [(SYSTEM + ASKED, [GOOD, BAD])])


def test_answers_that_are_too_long_or_too_short_drop_their_pair():
    row = {"prompt": "Hi?", "chosen": "Hello.", "rejected": "Go away, and do not come back."}
    source = SourceConfig(format=Format.preference, as_chat=True)
    for clean, cause in ((CleanConfig(max_chars=20), "too_long"), (CleanConfig(min_chars=12), "too_short")):
        batch = encode_batch(RowBatch("f", "line", [1], [row]), replace(source, clean=clean), False, CHAT)
        assert len(batch.lengths) == 0 and batch.counts[cause] == 1


# ---- what is refused, with its row and a fix

ROLES_READ = (
    "hold messages of the roles user, assistant, system, developer, tool, ipython, human, gpt, chatgpt, model, bot, "
    "observation, function or function_response"
)
REFUSED = [
    ({"prompt": "Hi?", "chosen": 3, "rejected": "A."}, "hold a list of messages in column 'chosen'"),
    ({"prompt": 3, "chosen": "B.", "rejected": "A."}, "hold text in column 'prompt'"),
    (
        {"prompt": {"text": "Hi?"}, "chosen": "B.", "rejected": "A."},
        "hold {messages, tools} in column 'prompt'",
    ),
    (
        {"prompt": "Hi?", "chosen": [{"role": {}, "content": "B."}], "rejected": "A."},
        ROLES_READ,
    ),
    (
        {"prompt": "Hi?", "chosen": [{"role": "narrator", "content": "B."}], "rejected": "A."},
        ROLES_READ,
    ),
]


@pytest.mark.parametrize(("row", "rule"), REFUSED)
def test_a_row_of_another_shape_is_a_sentence_with_its_place(row, rule):
    (problem,) = read_rows([LAYOUTS["TRL, texts"], row], CHAT).problems
    assert (problem.rule, problem.where) == (rule, "rows.jsonl, line 2")


@pytest.mark.parametrize("label", [None, "good", 2, float("nan"), [True]])
def test_a_label_that_is_none_is_a_sentence(label):
    row = {"prompt": "Hi?", "completion": "Hello.", "label": label}
    (problem,) = read_rows([row], CHAT, Format.unpaired).problems
    assert problem.rule == "hold true or false in column 'label'"


@pytest.mark.parametrize("ranks", [(1,), (1, 2, 3), ("a", "b"), (None, 1), (float("nan"), 1)])
def test_ranks_that_are_not_two_are_a_sentence(ranks):
    row = {"prompt": "Hi?", "completions": [{"rank": rank, "completion": "A."} for rank in ranks]}
    (problem,) = read_rows([row], CHAT, completions="completions").problems
    assert problem.rule == "hold two {rank, completion} in column 'completions'"


def test_texts_without_a_prompt_are_a_sentence_where_no_chat_is_made_of_them():
    row = {"chosen": "Hello.", "rejected": "Go away."}
    (problem,) = read_rows([row], make_tokenizer(None), as_chat=False).problems
    assert problem.rule == "hold a prompt in column 'prompt'" and "as_chat=true" in problem.fix


def test_turns_are_a_sentence_where_no_chat_is_made_of_them():
    (problem,) = read_rows([LAYOUTS["TRL, turns"]], CHAT, as_chat=False).problems
    assert problem.fix == "Turn texts into turns with as_chat=true of the source."


def test_a_template_that_writes_a_prompt_by_its_answer_is_a_sentence():
    """One in which the last turn decides how the first one is written."""
    shouts = "('!' if messages[-1].content|length > 6 else '')"
    template = templates.CHATML.replace("m.role +", f"m.role + {shouts} +")
    (problem,) = read_rows([LAYOUTS["TRL, texts"]], make_tokenizer(template)).problems
    assert problem.rule == "hold prompts that the chat template writes alike before both answers"


@pytest.mark.parametrize("as_chat", [True, False])
def test_alpacas_input_is_part_of_the_prompt(as_chat):
    """Left unread, both answers would be to half of what was asked."""
    row = {"instruction": "Add.", "input": "1, 2", "chosen": "3.", "rejected": "4."}
    read = read_rows([row], CHAT if as_chat else make_tokenizer(None), as_chat=as_chat)
    assert not read.problems and "Add.\n\n1, 2" in read.only[0]
    rated = {"instruction": "Add.", "input": "1, 2", "output": "3.", "kto_tag": True}
    read = read_rows([rated], CHAT if as_chat else make_tokenizer(None), Format.unpaired, as_chat=as_chat)
    assert not read.problems and "Add.\n\n1, 2" in read.only[0]
    turns = {"instruction": [user("Add.")], "input": "1, 2", "chosen": "3.", "rejected": "4."}
    (problem,) = read_rows([turns], CHAT).problems
    assert problem.rule == "hold text in column 'instruction' beside 'input'"


def test_rows_of_one_prompt_are_held_out_together_and_are_no_doubles():
    """Told apart by their answers too: a prompt that is held out is trained on in another row."""
    row = {"prompt": "Hi?", "chosen": "Hello.", "rejected": "Go away."}
    rows = [row, {**row, "rejected": "No."}, {**row, "chosen": "Welcome."}, {**row, "prompt": "Ho?"}]
    batch = read_rows(rows, CHAT).batch
    assert batch is not None and len(set(batch.digests)) == 4
    first, second, third, other = map(split_hash, batch.digests)
    assert first == second == third != other
    rated = [{"prompt": "Hi?", "completion": text, "label": True} for text in ("Hello.", "Welcome.")]
    batch = read_rows(rated, CHAT, Format.unpaired).batch
    assert batch is not None and len(set(batch.digests)) == 2
    assert split_hash(batch.digests[0]) == split_hash(batch.digests[1]) == first
