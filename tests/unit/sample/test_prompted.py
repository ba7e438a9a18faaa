"""Best of n: a model answers prompts by their number and the seed, and a reward model scores what it said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from tests.helpers.templates import SPECIAL_TOKENS
from tests.helpers.tokenizers import make_tokenizer, save_tokenizer
from trainer.cli import run_command
from trainer.config.scores import ScoresConfig
from trainer.errors import DataError
from trainer.sample.prompted import AnswerSampler
from trainer.sample.sampler import batch_seed

PROMPTS = ["How?", "Why not?", "When?"]
TOKENIZER = make_tokenizer()
SHAPE = {
    **{
        "vocab_size": TOKENIZER.vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
    },
    **{"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0},
    **{"bos_token_id": TOKENIZER.bos_id, "eos_token_id": TOKENIZER.eos_id, "dtype": "float32"},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a reward model and a language model that never loaded any code of ours."""
    root = tmp_path_factory.mktemp("models")
    for name, kind, more in (
        ("reward", LlamaForSequenceClassification, {"num_labels": 1}),
        ("language", LlamaForCausalLM, {}),
    ):
        torch.manual_seed(len(name))
        model = kind(LlamaConfig(**SHAPE, **more, initializer_range=0.3))
        model.save_pretrained(root / name)
        save_tokenizer(root / name, TOKENIZER)
    return root / "reward", root / "language"


def scored(folders: tuple[Path, Path], output: Path, *words: str) -> list[dict]:
    rows = output.with_name("prompts.jsonl")
    rows.write_text("".join(json.dumps({"prompt": prompt, "id": prompt[:2]}) + "\n" for prompt in PROMPTS))
    reward, language = folders
    given = [
        f"evaluate.scores.{word}"
        for word in (f"file={rows}", f"generator={language}", f"output_dir={output}")
    ]
    given += [f"evaluate.scores.{word}" for word in ("num_answers=3", "max_new_tokens=6", *words)]
    assert run_command(["evaluate", str(reward), *given]) == 0
    return [json.loads(line) for line in (output / "scores.jsonl").read_text().splitlines()]


def test_the_same_seed_gives_the_same_files_and_scores_are_those_of_plain_transformers(
    folders, tmp_path, capsys
):
    first, again, other = (
        scored(folders, tmp_path / name, f"seed={seed}") for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again != other
    for name in ("answers.jsonl", "scores.jsonl", "best.jsonl", "pairs.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    model, compared = AutoModelForSequenceClassification.from_pretrained(folders[0]), []
    for row, prompt in zip(first, PROMPTS, strict=True):
        assert row["prompt"] == prompt and row["id"] == prompt[:2]
        assert len(row["answers"]) == len(row["scores"]) == 3 and len(set(row["answers"])) > 1
        for answer, score in zip(row["answers"], row["scores"], strict=True):
            if any(token in answer for token in TOKENIZER.hf.all_special_tokens + SPECIAL_TOKENS):
                continue  # which is text in an answer, as in training, and not so in a rendering
            compared.append(score)
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            ids = TOKENIZER.encode_fragments([TOKENIZER.render_chat(turns)])[0]
            with torch.no_grad():
                assert score == pytest.approx(float(model(torch.tensor([ids])).logits), abs=1e-5)
    assert len(compared) >= 3
    best = [json.loads(line) for line in (tmp_path / "a" / "best.jsonl").read_text().splitlines()]
    for row, chosen in zip(first, best, strict=True):
        assert chosen["messages"][-1]["content"] == row["answers"][row["scores"].index(max(row["scores"]))]
    assert "3 prompts answered by" in capsys.readouterr().out


def test_answers_are_drawn_from_the_models_own_distribution_with_the_seed_of_their_row(folders):
    """Token by token by plain transformers without a cache; the row's number and the seed make the generator."""
    model = AutoModelForCausalLM.from_pretrained(folders[1]).eval()
    options = ScoresConfig(num_answers=2, max_new_tokens=4, temperature=0.7, seed=5)
    found = AnswerSampler(model, TOKENIZER, options).answer({"prompt": "How?", "completion": "old"}, 1)
    assert found.keys() == {"prompt", "answers"}
    asked = TOKENIZER.render_chat([{"role": "user", "content": "How?"}], add_generation_prompt=True)
    header = TOKENIZER.encode_fragments([asked])[0]
    generator = torch.Generator().manual_seed(batch_seed(5, 1))
    rows = [list(header) for _ in range(2)]
    with torch.no_grad():
        for _ in range(4):
            logits = model(torch.tensor(rows)).logits[:, -1].float() / 0.7
            drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
            for row, token in zip(rows, drawn, strict=True):
                row.append(int(token))
    stops = {TOKENIZER.eos_id, *TOKENIZER.encode_fragments([TOKENIZER.turn_end])[0]}
    assert not stops & {token for row in rows for token in row[len(header) :]}, (
        "choose a seed that does not end early"
    )
    assert found["answers"] == [TOKENIZER.decode(row[len(header) :]).strip() for row in rows]


def test_a_row_without_a_prompt_and_one_that_leaves_no_room_are_named(folders):
    model = AutoModelForCausalLM.from_pretrained(folders[1])
    sampler = AnswerSampler(model, TOKENIZER, ScoresConfig(max_new_tokens=250))
    with pytest.raises(DataError, match=r"row 3 has \['text'\]"):
        sampler.answer({"text": "x"}, 2)
    with pytest.raises(DataError, match=r"`evaluate\.scores\.max_new_tokens` must leave room .* 256 tokens"):
        sampler.answer({"prompt": "a long one"}, 0)


def test_a_reward_model_cannot_answer_and_numbers_out_of_range_are_refused(folders, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a"}\n')
    words = [f"evaluate.scores.file={rows}", f"evaluate.scores.generator={folders[0]}"]
    assert run_command(["evaluate", str(folders[0]), *words]) == 2
    assert (
        "`evaluate.scores.generator` must be the folder of a language model, but" in capsys.readouterr().err
    )
    assert run_command(["evaluate", str(folders[0]), *words, "evaluate.scores.num_answers=1"]) == 2
    assert "`evaluate.scores.num_answers` must be at least 2, but is 1 instead." in capsys.readouterr().err
