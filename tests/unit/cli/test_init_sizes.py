"""`palimpsest init`: packs hold what the chat template makes of the rows, so that `prepare` takes them as they are."""

import dataclasses
import json
import re

import pytest

from trainer.cli import run_command
from trainer.command.first_look import choose_sizes
from trainer.command.row_tokens import Tokens, count_tokens
from trainer.config.data import Format, SourceConfig
from trainer.config.learn import LearnConfig
from trainer.data.rows.guess import Guess, Holding, guess_layout
from trainer.model.tiny import build_tokenizer

TEMPLATE = (
    "{%- if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson(indent=4) }}{% endfor %}<|im_end|>\n"
    "{% elif messages[0].role != 'system' %}<|im_start|>system\n{{ 'Be kind. ' * BE_KIND }}<|im_end|>\n{% endif -%}"
    "{%- for m in messages %}<|im_start|>{{ m.role }}\n"
    "{%- if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{%- for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}</call>{% endfor %}<|im_end|>\n"
    "{%- endfor -%}"
)
SHAPE = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 264}
ASK, ANSWER = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}
PROPERTIES = {f"argument_{n}": {"type": "string", "description": "What it is about."} for n in range(20)}
TOOL = {"name": "look", "description": "Look.", "parameters": {"type": "object", "properties": PROPERTIES}}
CALL = {"type": "function", "function": {"name": "look", "arguments": {"what": "weather " * 200}}}
LONG = {
    "schemas of tools": {"messages": [ASK, ANSWER], "tools": [{"type": "function", "function": TOOL}]},
    "reasoning": {"messages": [ASK, {**ANSWER, "reasoning_content": "What may this be? " * 80}]},
    "calls": {"messages": [ASK, {**ANSWER, "content": "", "tool_calls": [CALL]}]},
    "many turns": {"messages": [ASK, ANSWER] * 40},
    "a system column": {"messages": [ASK, ANSWER], "system": "Be brief. " * 130},
}


@pytest.fixture
def model(tmp_path):
    """Return a function that writes the folder of a model, without weights, of a context and a template."""

    def write(context=8192, be_kind=1):
        folder = tmp_path / "base"
        build_tokenizer().save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps(SHAPE | {"max_position_embeddings": context}))
        (folder / "chat_template.jinja").write_text(TEMPLATE.replace("BE_KIND", str(be_kind)))
        return folder

    return write


@pytest.fixture
def begin(here, capsys):
    """Return a function that runs init and then prepare on rows, and returns what both said."""

    def run(model, rows):
        (here / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert run_command(["init", f"model={model}", "data=a.jsonl"]) == 0, capsys.readouterr().err
        said = capsys.readouterr().out
        words = [
            "experiment=a",
            f"hydra.searchpath=[file://{here}/palimpsest]",
            f"data.cache_dir={here}/cache",
        ]
        assert run_command(["prepare", *words, "data.num_workers=1"]) == 0, capsys.readouterr().err
        return said, capsys.readouterr().out

    return run


def longest(said):
    """Return the tokens of the longest document, as init or prepare tells them."""
    found = re.search(r"longest document (?:has about|\s*│)\s*([\d,]+)", said)
    return int(found[1].replace(",", ""))


@pytest.mark.parametrize("what", LONG)
def test_packs_hold_all_that_the_template_writes_of_a_row(model, begin, what):
    """Of these rows the contents alone were counted: 9 letters, in packs of 512."""
    plain = {key: "" for key in LONG[what] if key == "system"} | {"messages": [ASK, ANSWER]}
    said, prepared = begin(model(), [*[plain] * 30, LONG[what], *[plain] * 30])
    assert longest(said) == longest(prepared) > 1024 and "with the chat template" in said


def test_packs_hold_what_the_template_writes_of_its_own(model, begin):
    said, prepared = begin(
        model(be_kind=150), [{"prompt": "Hi?", "completion": f"Hello {n}."} for n in range(60)]
    )
    assert longest(said) == longest(prepared) > 1024 and "data.seq_len=2048 " in said


def test_a_conversation_that_is_longer_than_the_models_context_is_cut_and_told(model, begin, here):
    """It was written that packs are as long as the context, and `prepare` stopped at the first such row."""
    rows = [{"messages": [ASK, ANSWER]}] * 30 + [{"messages": [ASK, {**ANSWER, "content": "word " * 300}]}]
    said, prepared = begin(model(context=1024), rows)
    assert "Longer than a pack: 1 of 31 documents; they are cut" in said
    assert "data.seq_len=1024 (the model's context is 1024)" in said
    text = (here / "palimpsest" / "experiment" / "a.yaml").read_text()
    assert "\n      long_documents: split   # cuts 1 document longer than a pack" in text
    assert "1 document longer than a pack cut into 2 pieces" in re.sub(r"\W+", " ", prepared)


def test_the_steps_of_an_epoch_and_what_is_held_out_are_those_of_the_store(begin, model):
    turns = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello " * 10}]
    rows = [
        {"messages": [*turns[:1], {**turns[1], "content": f"{turns[1]['content']}{i}"}]} for i in range(60)
    ]
    said, prepared = begin(model(), rows)
    held_out, steps = (int(re.search(rf"about (\d+) {what}", said)[1]) for what in ("of 60 doc", "steps? an"))
    packs = int(re.search(r"training packs\W+(\d+) ", prepared)[1])
    assert f"({held_out} held out)" in prepared and packs - 1 <= steps <= packs


def test_the_longest_in_tokens_is_found_where_another_has_more_letters(model, here):
    """Each of these letters is three tokens of this tokenizer."""
    rows = [{"text": "a" * 900}, *[{"text": "b"}] * 9, {"text": "\u6f22" * 400}]
    (here / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    guess = guess_layout("a", str(here / "a.jsonl"), True, [], LearnConfig())
    assert count_tokens(model(), "", guess).longest == 1200
    assert count_tokens(None, "", guess).longest == 400, (
        "where no tokenizer is here, of Latin three are a token"
    )


def test_room_is_left_for_a_template_that_is_not_here(here):
    (here / "a.jsonl").write_text(json.dumps(LONG["schemas of tools"]) + "\n")
    guess = guess_layout("a", str(here / "a.jsonl"), True, [], LearnConfig())
    tokens = count_tokens(None, "", guess)
    assert tokens.longest > len(json.dumps(TOOL)) / 3 and not tokens.is_counted
    assert choose_sizes(guess, tokens, 131072, 1, 0.0).seq_len == 2048


@pytest.mark.parametrize(
    ("longest", "context", "seq_len", "num_long"),
    [
        (5000, 131072, 8192, 0),
        (5000, 6000, 6000, 0),
        (50_000, 131072, 8192, 1),
        (50_000, None, 8192, 1),
        (3000, None, 4096, 0),
    ],
)
def test_packs_grow_as_far_as_the_context_and_a_limit_of_their_own_go(longest, context, seq_len, num_long):
    """Beside the longest stands one of 5,000 tokens; what no pack holds does not make packs longer."""
    lengths = [longest, 5000 if longest > 5000 else 10]
    guess = Guess(SourceConfig(format=Format.chat), "", {}, [], 1, [], Holding(num_rows=2, num_documents=2))
    sizes = choose_sizes(guess, Tokens(longest, sum(lengths), True, "", lengths), context, 1, 0.0)
    assert (sizes.seq_len, sizes.num_long) == (seq_len, num_long)
    text = dataclasses.replace(guess, source=SourceConfig(format=Format.text))
    assert (
        choose_sizes(text, Tokens(longest, sum(lengths), True, "", lengths), context, 1, 0.0).seq_len <= 4096
    )


def test_a_tokenizer_that_cannot_be_loaded_is_told_and_room_is_left(model, here, capsys):
    """As one with code of its own, which nobody has said is to be trusted."""
    folder = model()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (here / "a.jsonl").write_text(json.dumps({"messages": [ASK, ANSWER]}) + "\n")
    assert run_command(["init", f"model={folder}", "data=a.jsonl"]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "The chat template was not asked, so that rows may be longer." in said and "Written: " in said
