"""What trains beside LoRA: modules whole, rows of new tokens, and factors begun at the principal part."""

import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.helpers.tiny import SHAPE
from tests.helpers.tokenizers import make_tokenizer, save_tokenizer
from trainer.config.model import ModelConfig
from trainer.config.tune import Init, TuneConfig, TuneMethod
from trainer.errors import ConfigError, ModelError, SelfCheckError
from trainer.model.head.head import install_loss_head
from trainer.model.tokenizer import configured_tokenizer
from trainer.model.tune.adapters import apply_tuning
from trainer.model.tune.new_tokens import NewTokens
from trainer.model.tune.pissa import FILE_NAME, as_plain_lora, begin_at_principal

TOKENS = torch.arange(4, 24)[None]


def build(**changes):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, initializer_range=0.1, pad_token_id=0, use_cache=False, **SHAPE)
    for key, value in changes.items():
        setattr(config, key, value)
    return LlamaForCausalLM(config).eval()


def trained_names(model):
    return {name for name, p in model.named_parameters() if p.requires_grad and ".lora_" not in name}


def tune_of(**changes):
    return TuneConfig(method=TuneMethod.lora, r=4, **changes)


def test_named_modules_train_whole_beside_the_adapter():
    model = build()
    tuned = apply_tuning(model, tune_of(modules_to_save=["lm_head", "norm"]), seed=0)
    assert trained_names(model) == {"lm_head.weight", "model.norm.weight"}
    assert tuned.peft_config.modules_to_save == ["lm_head", "model.norm"]


def test_a_tied_head_trains_as_the_one_matrix_it_is():
    model = build(tie_word_embeddings=True)
    tuned = apply_tuning(model, tune_of(modules_to_save=["lm_head"]), seed=0)
    assert trained_names(model) == {"model.embed_tokens.weight"}
    assert set(tuned.peft_config.modules_to_save) == {"model.embed_tokens", "lm_head"}


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("lm_haed", r"`tune.modules_to_save` must name modules of the model .*but 'lm_haed' finds none"),
        (
            "q_proj",
            r"`tune.modules_to_save` must leave out what tune.target adapts, but 'q_proj' finds model",
        ),
        ("mlp", r"`tune.modules_to_save` must leave out what tune.target adapts, but 'mlp' finds model"),
    ],
)
def test_modules_that_cannot_train_whole_are_refused(word, sentence):
    with pytest.raises(ConfigError, match=sentence):
        apply_tuning(build(), tune_of(modules_to_save=[word]), seed=0)


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("first_id", [60, 62, 64])
def test_new_tokens_leave_the_logits_of_old_ones_as_they_are(is_tied, first_id):
    """The logits of what was there are bitwise the base's, wherever the new rows stand."""
    new = NewTokens(first_id, ((5,), (6, 7), (8,)))
    base = build(tie_word_embeddings=is_tied)
    with torch.no_grad():
        expected = base(input_ids=TOKENS).logits[0]
    model = build(tie_word_embeddings=is_tied)
    tuned = apply_tuning(model, tune_of(), seed=0, new_tokens=new)
    install_loss_head(model, 8)
    with torch.no_grad():
        logits = model(input_ids=TOKENS).logits[0]
        again = model(input_ids=torch.tensor([[first_id, first_id + 1]])).logits
    assert logits.shape[1] == max(64, first_id + 3) and again.isfinite().all()
    old = min(first_id, 64)
    assert torch.equal(logits[:, :old], expected[:, :old])
    embed = model.get_input_embeddings()
    weight = base.get_input_embeddings().weight
    torch.testing.assert_close(embed.rows[1], (weight[6] + weight[7]) / 2)
    assert trained_names(model) == {"model.embed_tokens.rows"} | (set() if is_tied else {"lm_head.rows"})
    names = {"model.embed_tokens"} | (set() if is_tied else {"lm_head"})
    assert tuned.peft_config.trainable_token_indices == dict.fromkeys(names, new.ids)


def test_new_tokens_are_refused_where_they_cannot_stand():
    new = NewTokens(64, ((5,),))
    with pytest.raises(ConfigError, match=r"`tune.modules_to_save` must leave out embed_tokens and lm_head"):
        apply_tuning(build(), tune_of(modules_to_save=["lm_head"]), seed=0, new_tokens=new)
    with pytest.raises(ConfigError, match=r"must follow tokens that the model has rows for \(64\)"):
        apply_tuning(build(), tune_of(), seed=0, new_tokens=NewTokens(65, ((5,),)))


def test_a_token_that_is_known_empty_or_named_twice_is_refused(tmp_path):
    folder = str(save_tokenizer(tmp_path / "tokenizer", make_tokenizer()))
    tokenizer = configured_tokenizer(ModelConfig(new_tokens=["<x>", "<yy>"]), folder)
    assert tokenizer.encode_fragments(["a<x><yy>"])[0][-2:] == tokenizer.new.ids
    assert configured_tokenizer(ModelConfig(), folder).digest != tokenizer.digest
    known = next(iter(configured_tokenizer(ModelConfig(), folder).hf.get_vocab()))
    for words, why in (
        (["<x>", known], "the tokenizer has it, with id"),
        (["<x>", "<x>"], "it is named twice"),
        ([" "], "it is empty"),
    ):
        with pytest.raises(ConfigError, match=rf"`model.new_tokens` must be tokens .*{why}"):
            configured_tokenizer(ModelConfig(new_tokens=words), folder)


def run_pissa(model, tune, folder):
    tuned = apply_tuning(model, tune, seed=0)
    return tuned, begin_at_principal(model, tuned.modules, tune, 0, folder, lambda make: make())


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pissa_begins_at_the_base_and_leaves_as_lora_of_twice_the_rank(tmp_path, rslora, dtype):
    tune = tune_of(init=Init.pissa, rslora=rslora, alpha=3.0)
    base, model = build().to(dtype), build().to(dtype)
    tuned, moved = run_pissa(model, tune, tmp_path)
    assert moved < (1e-5 if dtype is torch.float32 else 0.05)
    layer = model.get_submodule("model.layers.0.self_attn.q_proj")
    whole = base.get_submodule("model.layers.0.self_attn.q_proj").weight.detach().float()
    scale = 3.0 / (math.sqrt(4) if rslora else 4)
    a, b = (getattr(layer, f"lora_{which}")["default"].weight for which in "AB")
    largest = torch.linalg.svdvals(whole)
    left = torch.linalg.svdvals(layer.base_layer.weight.float())
    assert left[0] == pytest.approx(float(largest[4]), rel=0.05), "the largest values are not taken out"
    with torch.no_grad():
        a += 0.01
        b *= 1.1
    name = "model.layers.0.self_attn.q_proj"
    stream = [(f"{name}.lora_A.default.weight", a.detach()), (f"{name}.lora_B.default.weight", b.detach())]
    converted, config = as_plain_lora(stream, tuned.peft_config, tmp_path)
    (_, big_a), (_, big_b) = converted
    assert (config.r, config.init_lora_weights, config.use_rslora) == (8, True, False)
    exported = whole + config.lora_alpha / config.r * big_b.float() @ big_a.float()
    trained = layer.base_layer.weight.float() + scale * b.detach().float() @ a.detach().float()
    torch.testing.assert_close(exported, trained, rtol=0, atol=1e-5 if dtype is torch.float32 else 2e-3)


def test_a_resumed_pissa_takes_the_same_part_out_whatever_an_svd_says(tmp_path, monkeypatch):
    tune = tune_of(init=Init.pissa)
    first, second = build(), build()
    run_pissa(first, tune, tmp_path)
    monkeypatch.setattr(torch.linalg, "svd", None)
    run_pissa(second, tune, tmp_path)
    assert all(
        torch.equal(p, q)
        for p, q in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_a_pissa_that_moves_the_base_or_lost_its_beginning_is_found(tmp_path, monkeypatch):
    from trainer.model.tune import pissa

    tune = tune_of(init=Init.pissa)
    scale = pissa._scale(tune)
    run_pissa(build(), tune, tmp_path)
    monkeypatch.setattr(pissa, "_scale", lambda tune: 2 * scale)
    with pytest.raises(SelfCheckError, match="PiSSA must leave the base's logits as they are"):
        run_pissa(build(), tune, tmp_path)
    assert len(load_file(str(tmp_path / FILE_NAME))) == 2 * 14
    described = apply_tuning(build(), tune, seed=0).peft_config
    with pytest.raises(ModelError, match="must hold what PiSSA took out of the base, but is missing"):
        as_plain_lora([], described, tmp_path / "elsewhere")
