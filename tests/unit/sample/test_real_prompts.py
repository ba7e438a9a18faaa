"""Real prompts: what of a row is asked, what is thrown away and said, and that answers are the model's own."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers import templates
from tests.helpers.tiny import save_llama
from tests.helpers.tokenizers import make_tokenizer
from trainer.config.data import DataConfig, Format, Role, SourceConfig
from trainer.config.generate import GenerateConfig
from trainer.errors import ConfigError, DataError
from trainer.sample.generate import Judge
from trainer.sample.prompts import Draft, PromptPlan
from trainer.sample.real_prompts import GivenPrompts, given_prompts
from trainer.sample.sampler import TransformersSampler

CPU = torch.device("cpu")


def chat(*turns):
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return {"messages": [{"role": roles[turn[0]], "content": turn[2:]} for turn in turns]}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(folder, path=None, sources=None, template=templates.QWEN3, most=None):
    data = DataConfig(cache_dir=str(folder / "cache"), sources=sources or {})
    return given_prompts(path, data, make_tokenizer(template), most, 0)


def asked(found):
    return [[turn["content"] for turn in turns] for turns in found.turns]


def test_what_is_before_the_first_answer_is_asked_and_the_rest_is_thrown_away_and_counted(tmp_path):
    rows = [
        chat("u:hello", "a:hi"),
        chat("s:Be brief.", "u:why", "a:so", "u:and then", "a:end"),
        chat("u:hello", "a:another answer"),
        chat("a:I begin", "u:late", "a:so"),
        chat("u:" + "long " * 400, "a:no"),
    ]
    found = read(tmp_path, write(tmp_path / "chats.jsonl", rows), most=600)
    assert asked(found) == [["hello"], ["Be brief.", "why"]]
    assert found.counts == {
        "answers of the rows, thrown away": 5,
        "later turns, not asked": 1,
        "prompts that were there before": 1,
        "rows without a question before the first answer": 1,
        "prompts that leave no room for an answer in the model's context": 1,
    }
    tokenizer = make_tokenizer(templates.QWEN3)
    for turns, rest in zip(found.turns, found.rest, strict=True):
        whole = tokenizer.render_chat(turns, None, True)
        assert [found.header + rest] == tokenizer.encode_fragments([whole])
        assert "hi" not in whole and "so" not in whole.replace("system", "")
    assert found.longest == max(map(len, found.rest)) + len(found.header) and found.header


def test_files_of_prompts_alone_and_of_lines_are_read_too(tmp_path):
    alone = write(tmp_path / "alone.jsonl", [{"prompt": "one"}, {"prompt": "two"}])
    assert asked(read(tmp_path, alone)) == [["one"], ["two"]]
    pairs = write(tmp_path / "pairs.jsonl", [{"prompt": "three", "completion": "3"}])
    assert asked(read(tmp_path, pairs)) == [["three"]]
    lines = tmp_path / "lines.txt"
    lines.write_text("four\nfive\n\nsix\n")
    assert asked(read(tmp_path, str(lines))) == [["four"], ["five"], ["six"]]


def test_target_sources_of_the_run_give_their_own_prompts(tmp_path):
    files = {
        "new": write(tmp_path / "new.jsonl", [chat("u:one", "a:1"), chat("u:two", "a:2")]),
        "pairs": write(tmp_path / "pairs.jsonl", [{"prompt": "three", "completion": "3"}]),
        "old": write(tmp_path / "old.jsonl", [chat("u:old", "a:0")]),
        "text": write(tmp_path / "text.jsonl", [{"text": "a text"}]),
    }
    kinds = {"new": Format.chat, "pairs": Format.completion, "old": Format.chat, "text": Format.text}
    sources = {name: SourceConfig(path=path, format=kinds[name]) for name, path in files.items()}
    sources["old"].role = Role.replay
    assert asked(read(tmp_path, sources=sources)) == [["one"], ["two"], ["three"]]
    with pytest.raises(ConfigError, match=r"`replay.generate.prompt_file` must be a file"):
        read(tmp_path, sources={name: sources[name] for name in ("old", "text")})


def test_what_cannot_be_asked_is_a_sentence(tmp_path):
    path = write(tmp_path / "chats.jsonl", [chat("a:I begin", "u:late", "a:so")])
    with pytest.raises(DataError, match=r"must have a prompt, but .* \(rows without a question .*: 1\)"):
        read(tmp_path, path)
    pairs = write(tmp_path / "pairs.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    with pytest.raises(DataError, match=r"prompts alone, but .* holds rows of format=preference"):
        read(tmp_path, pairs)
    with pytest.raises(ConfigError, match=r"without a chat template, but is given instead"):
        read(tmp_path, path, template=None)


def prompts_of(header, rest):
    turns = [[{"role": "user", "content": f"question {number}"}] for number in range(len(rest))]
    return GivenPrompts(turns, header, rest, {}, list(range(len(rest))))


def test_every_prompt_is_asked_before_any_comes_again_and_their_order_is_of_the_seed(tmp_path):
    path = write(tmp_path / "chats.jsonl", [chat(f"u:{number}", "a:x") for number in range(20)])
    found = read(tmp_path, path)
    places = [found.place(number) for number in range(40)]
    assert sorted(places[:20]) == list(range(20)) and places[20:] == places[:20] != list(range(20))
    other = given_prompts(path, DataConfig(cache_dir=str(tmp_path)), make_tokenizer(templates.QWEN3), None, 1)
    assert other.order != found.order and other.digest == found.digest
    fewer = write(tmp_path / "fewer.jsonl", [chat("u:0", "a:x")])
    assert read(tmp_path, fewer).digest != found.digest


def test_answers_follow_the_model_behind_prompts_of_any_length(tmp_path):
    """First tokens of many answers against the softmax behind the whole prompt; too short a wait would take its own."""
    save_llama(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(40)  # so that it matters what was read
    plan = PromptPlan(is_chat=True, header=[5], bridge=[], stops=[])
    given = prompts_of([5], [[6], [7, 8, 9, 10]])
    options = GenerateConfig(max_new_tokens=1)
    drafts = TransformersSampler(model, plan, options, 3_000, CPU, given).sample(0, lambda: False)
    assert {len(draft.turns) for draft in drafts} == {1} and {draft.num_sampled for draft in drafts} == {1}
    wanted_V = []
    for place, rest in enumerate(given.rest):
        first = torch.tensor([draft.turns[0][0] for draft in drafts if draft.place == place])
        assert len(first) == 1_500
        shares_V = torch.bincount(first, minlength=264) / len(first)
        with torch.no_grad():
            logits_V = model(input_ids=torch.tensor([[5, *rest]])).logits[0, -1]
        wanted_V.append(torch.softmax(logits_V.float(), -1))
        torch.testing.assert_close(shares_V, wanted_V[-1], atol=0.06, rtol=0)
    assert (wanted_V[0] - wanted_V[1]).abs().max() > 0.2


class Letters:
    def decode(self, ids):
        return " ".join(f"w{token}" for token in ids)


def test_a_row_is_the_prompt_with_the_models_answer_and_bad_answers_are_dropped_by_cause():
    plan = PromptPlan(is_chat=True, header=[5], bridge=[], stops=[1], opening="<think>")
    given = prompts_of([5], [[6], [7, 8]])
    judge = Judge(plan, GenerateConfig(min_new_tokens=2), Letters(), frozenset({1, 5}), given)
    found = []
    for place, sampled in ((0, [20, 21, 22, 1]), (1, [20, 21, 22, 1]), (0, [20, 1]), (1, [20, 21])):
        draft = Draft(plan, 9, place)
        draft.ask(given.rest[place])
        for token in [99] * len(given.rest[place]) + sampled:
            draft.take(token)
        found.append(judge.outcome(draft))
    first, second = found[:2]
    assert first[1]["messages"] == [
        {"role": "user", "content": "question 0"},
        {"role": "assistant", "content": "<think>w20 w21 w22"},
    ]
    assert [one[0].fault for one in found] == [None, None, "too short", "not ended"]
    assert first[0].num_tokens == 3
    assert first[0].fingerprint != second[0].fingerprint, "the same answer to another prompt is another row"
