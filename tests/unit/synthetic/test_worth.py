"""Answers scored by a reward model, and several prompts answered together by an engine that is given."""

import sys
import types

import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from tests.helpers.tokenizers import make_tokenizer, save_tokenizer
from trainer.config.generate import GenerateConfig
from trainer.config.synthetic import SampleVerbConfig, SyntheticConfig
from trainer.export.folder import load_scorer
from trainer.sample.answering import VllmAnswering
from trainer.sample.sampler import batch_seed
from trainer.synthetic.asked_model import AskedModel
from trainer.synthetic.best_answers import Answer, AnswersMaker, read_prompt
from trainer.synthetic.given_rows import GivenRow
from trainer.synthetic.worth import EMPTY, Scorer, by_reward_model

TOKENIZER = make_tokenizer()
SHAPE = {
    **{
        "vocab_size": TOKENIZER.vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
    },
    **{"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 96, "pad_token_id": 0},
}


def test_the_best_is_what_plain_transformers_scores_highest_and_what_cannot_be_scored_has_failed(tmp_path):
    torch.manual_seed(3)
    config = LlamaConfig(**SHAPE, num_labels=1, initializer_range=0.3, eos_token_id=TOKENIZER.eos_id)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, TOKENIZER)
    said = [Answer(text, False) for text in ("Yes.", "No, never.", "", "x" * 200, "Well")]

    class Told:
        def answers(self, prompts, num_answers, number):
            return [said for _ in prompts]

    options = SyntheticConfig(sample=SampleVerbConfig(reward_model=str(tmp_path), num_answers=5))
    worth = by_reward_model(Scorer(load_scorer(tmp_path, False), TOKENIZER, 96, 2))
    row = GivenRow("r", "f", {"prompt": "How?"})
    part = AnswersMaker(options, Told(), worth, {}).make([read_prompt(row, options)], 0)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    scores = {}
    for place in (0, 1, 4):
        turns = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": said[place].text}]
        ids = torch.tensor(TOKENIZER.encode_fragments([TOKENIZER.render_chat(turns)]))
        with torch.no_grad():
            scores[said[place].text] = float(model(ids).logits)
    best = max(scores, key=scores.get)
    assert part.rows[0]["messages"][-1]["content"] == best
    assert part.rows[0]["score"] == pytest.approx(scores[best], abs=1e-5)
    failures = part.notes[0]["failures"]
    assert failures.pop(EMPTY) == 1 and sum(failures.values()) == 1 and "longer than" in next(iter(failures))


def test_prompts_that_fit_are_answered_together_each_by_its_own_seed(monkeypatch):
    """The engine says a letter for each request, then the end; the third prompt has no room."""
    requests = []
    vllm = types.ModuleType("vllm")
    vllm.SamplingParams = lambda **given: given
    monkeypatch.setitem(sys.modules, "vllm", vllm)

    class Engine:
        def generate(self, prompts, parameters, use_tqdm):
            requests.extend(zip(prompts, parameters, strict=True))
            letters = [TOKENIZER.encode_fragments([chr(97 + n)])[0] for n in range(len(prompts))]
            outputs = [
                ([*ids, TOKENIZER.eos_id], "stop") if n else (ids * 4, "length")
                for n, ids in enumerate(letters)
            ]
            return [
                types.SimpleNamespace(outputs=[types.SimpleNamespace(token_ids=ids, finish_reason=why)])
                for ids, why in outputs
            ]

    options = GenerateConfig(max_new_tokens=4, seed=7)
    asked = AskedModel(TOKENIZER, VllmAnswering(Engine(), TOKENIZER, options, []), 4, 60)
    turns = [[{"role": "user", "content": text}] for text in ("one", "x" * 80, "two")]
    found = asked.answers(turns, 2, 5)
    assert found == [
        [Answer("aaaa", True), Answer("b", False)],
        None,
        [Answer("c", False), Answer("d", False)],
    ]
    rendered = [TOKENIZER.render_chat(turns[place], add_generation_prompt=True) for place in (0, 0, 2, 2)]
    assert [prompt["prompt_token_ids"] for prompt, _ in requests] == TOKENIZER.encode_fragments(rendered)
    first = batch_seed(12, 0)
    assert [given["seed"] for _, given in requests] == [(first + n) % 2**63 for n in range(4)]
