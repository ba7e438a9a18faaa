"""Sampling: the model's own distribution, the seed of a batch, and the batch that fits."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.helpers.tiny import save_llama
from tests.unit.engine.test_rows import CARRYING, SHAPE
from trainer.config.generate import GenerateConfig
from trainer.errors import ModelError
from trainer.sample.prompts import PromptPlan
from trainer.sample.sampler import TransformersSampler, batch_seed, choose_batch_size, draw

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_llama(folder)
    # What instruct models ask for; samples must not heed it.
    made = AutoModelForCausalLM.from_pretrained(folder)
    made.generation_config.update(do_sample=True, temperature=0.01, top_k=1, top_p=0.1)
    return made


def never():
    return False


def test_draws_follow_the_softmax_and_the_temperature():
    logits_V = torch.tensor([0.0, 1.0, 2.0, -1.0])
    generator = torch.Generator().manual_seed(0)
    for temperature in (1.0, 2.0):
        drawn = draw(logits_V.expand(200_000, -1), temperature, 1.0, generator)
        shares = torch.bincount(drawn, minlength=4) / len(drawn)
        torch.testing.assert_close(shares, torch.softmax(logits_V / temperature, -1), atol=0.004, rtol=0)


def test_top_p_keeps_the_fewest_likely_tokens_that_reach_it():
    logits_V = torch.log(torch.tensor([0.1, 0.5, 0.3, 0.1]))
    generator = torch.Generator().manual_seed(0)

    def drawn(top_p):
        return sorted(set(draw(logits_V.expand(5000, -1), 1.0, top_p, generator).tolist()))

    assert drawn(0.4) == [1] and drawn(0.6) == [1, 2] and drawn(1.0) == [0, 1, 2, 3]
    assert drawn(1e-9) == [1], "the most likely token always stays"


def test_samples_follow_the_model_and_not_its_generation_config(model):
    """First tokens of many samples against the softmax of the model's logits."""
    plan = PromptPlan(is_chat=False, header=[5, 6], bridge=[], stops=[])
    options = GenerateConfig(max_new_tokens=1)
    drafts = TransformersSampler(model, plan, options, 20_000, CPU).sample(0, never)
    first = torch.tensor([draft.turns[0][0] for draft in drafts])
    shares_V = torch.bincount(first, minlength=264) / len(first)
    with torch.no_grad():
        expected_V = torch.softmax(model(torch.tensor([[5, 6]])).logits[0, -1], -1)
    assert (shares_V - expected_V).abs().sum() < 0.1, "total variation of 20,000 draws from 264 tokens"


def test_chats_are_as_likely_as_the_models_entropy_says(model):
    """Points at a wrong position, a stale cache, or rows mixed up when finished ones leave the batch.

    Every sampled token is scored by a forward pass without a cache. The mean of log p + entropy is 0 for
    samples of the model; conditioning on anything else shifts it by a divergence, 0.3 nats here.
    """
    plan = PromptPlan(is_chat=True, header=[5, 6], bridge=[3, 70, 71], stops=[1, 2, 4, 9])
    options = GenerateConfig(max_new_tokens=150)
    drafts = TransformersSampler(model, plan, options, 48, CPU).sample(3, never)
    surplus, variance, num_answers = 0.0, 0.0, 0
    for draft in drafts:
        ids, scored = list(plan.header), []
        for turn, words in zip(draft.turns, (plan.bridge, []), strict=False):
            scored += range(len(ids), len(ids) + len(turn))
            ids += [*turn, *words]
        num_answers += len(draft.turns) == 2
        with torch.no_grad():
            logp_TV = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
        before = logp_TV[torch.tensor(scored, dtype=torch.long) - 1]
        entropy = -(before.exp() * before).sum(-1)
        surplus += float((before[torch.arange(len(scored)), [ids[at] for at in scored]] + entropy).sum())
        variance += float(((before.exp() * before**2).sum(-1) - entropy**2).sum())
    assert num_answers > 5 and variance > 300, "too little was sampled"
    assert abs(surplus) < 5 * variance**0.5


WINDOWED = {
    "mistral": {"sliding_window": 6},
    "qwen3": {
        "use_sliding_window": True,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gemma3_text": {
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"],
        "tie_word_embeddings": False,
    },
    "llama4_text": {
        "attention_chunk_size": 6,
        "layer_types": ["chunked_attention", "full_attention"],
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
    },
}


@pytest.mark.parametrize("model_type", WINDOWED)
def test_a_model_with_windows_shorter_than_the_prompt_says_what_transformers_lets_it_say(model_type):
    """The likeliest tokens; a failure: a cache that forgets too much or too little, or wrong places."""
    sizes = {**SHAPE, "head_dim": 8, "initializer_range": 0.5}
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **sizes, **WINDOWED[model_type])
    model = AutoModelForCausalLM.from_config(config).eval()
    header = [5, 9, 3, 17, 22, 30, 8, 12, 25, 11, 19, 4, 33, 7, 28, 14]
    plan = PromptPlan(is_chat=False, header=header, bridge=[], stops=[])
    options = GenerateConfig(max_new_tokens=16, top_p=1e-9)
    drafts = TransformersSampler(model, plan, options, 3, CPU).sample(0, never)
    with torch.no_grad():
        asked = {"do_sample": False, "max_new_tokens": 16, "eos_token_id": None, "pad_token_id": 0}
        meant = model.generate(torch.tensor([header]), **asked)[0, len(header) :].tolist()
        far = model(torch.tensor([header])).logits[0, -1]
        near = model(torch.tensor([[40 - header[0], *header[1:]]])).logits[0, -1]
    assert [draft.turns[0] for draft in drafts] == [meant] * 3
    assert len(set(meant)) > 4, "something that changes is said"
    assert model_type != "mistral" or torch.allclose(far, near), "no layer sees the beginning"


def test_a_batch_is_its_number_and_seed_and_the_generators_are_left_alone(model):
    plan = PromptPlan(is_chat=False, header=[5], bridge=[], stops=[1])
    before = torch.get_rng_state()

    def turns(number, seed=0):
        options = GenerateConfig(max_new_tokens=12, seed=seed)
        sampler = TransformersSampler(model, plan, options, 4, CPU)
        sampler.sample(99, never)  # what was sampled before does not matter
        return [draft.turns for draft in sampler.sample(number, never)]

    assert turns(1) == turns(1)
    assert turns(1) != turns(2) and turns(1) != turns(1, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    seeds = {batch_seed(seed, number) for seed in range(20) for number in range(200)}
    assert len(seeds) == 4000 and all(0 <= seed < 2**63 for seed in seeds)


def test_a_stop_ends_a_batch_in_the_middle(model):
    plan = PromptPlan(is_chat=False, header=[5], bridge=[], stops=[])
    asked = iter([False, False, True])
    sampler = TransformersSampler(model, plan, GenerateConfig(max_new_tokens=400), 2, CPU)
    assert sampler.sample(0, lambda: next(asked)) is None


def test_the_batch_fits_the_gpu_and_is_modest_without_one():
    llama_8b = SimpleNamespace(
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        hidden_size=4096,
        num_hidden_layers=32,
        vocab_size=128_256,
    )
    assert choose_batch_size(llama_8b, 1100, None, 8_000_000_000) == 16
    gib = 2**30
    assert choose_batch_size(llama_8b, 1100, 80 * gib, 8_000_000_000) == 128
    assert choose_batch_size(llama_8b, 1100, 24 * gib, 8_000_000_000) == 16
    assert choose_batch_size(llama_8b, 1100, 16 * gib, 8_000_000_000) == 1
    assert choose_batch_size(llama_8b, 100, 141 * gib, 100_000_000) == 256


class Checked(TransformersSampler):
    """Compares what is said of every row with what the model says of the row's whole text."""

    text_BT = torch.empty(1, 0, dtype=torch.long)
    sizes: frozenset = frozenset()

    def _read(self, tokens_BT, cache, place):
        if not self.sizes:
            choose = cache.reorder_cache

            def chosen(rows_B):
                self.text_BT = self.text_BT[rows_B]
                choose(rows_B)

            cache.reorder_cache = chosen
        self.sizes |= {len(tokens_BT)}
        self.text_BT = torch.cat([self.text_BT, tokens_BT], dim=1)
        logits_BV = super()._read(tokens_BT, cache, place)
        whole_BV = self._model(self.text_BT, use_cache=False).logits[:, -1]
        torch.testing.assert_close(logits_BV, whole_BV, atol=1e-3, rtol=1e-3)
        return logits_BV


@pytest.mark.parametrize("model_type", CARRYING)
def test_models_with_states_in_place_of_keys_sample_what_they_say_of_the_whole_text(model_type):
    """A failure: a state is lost, or belongs to another row, when the header is repeated or ended rows go."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **{**SHAPE, **CARRYING[model_type]})
    )
    plan = PromptPlan(is_chat=False, header=[5, 6, 7, 8, 9, 10], bridge=[], stops=list(range(11)))
    sampler = Checked(model, plan, GenerateConfig(max_new_tokens=12), 12, CPU)
    assert sampler.sample(0, never) is not None
    assert sampler.sizes - {1, 12}, "some rows have gone"


def test_a_model_whose_states_are_kept_otherwise_is_refused():
    config = AutoConfig.for_model("rwkv", vocab_size=40, hidden_size=16, num_hidden_layers=2)
    plan = PromptPlan(is_chat=False, header=[5], bridge=[], stops=[])
    with pytest.raises(ModelError, match=r"must take a cache as .* but RwkvForCausalLM takes"):
        TransformersSampler(AutoModelForCausalLM.from_config(config), plan, GenerateConfig(), 2, CPU)


def test_a_model_without_keys_gets_a_small_batch_on_any_gpu():
    assert choose_batch_size(AutoConfig.for_model("mamba2"), 512, 141 << 30, 10**9) == 16
