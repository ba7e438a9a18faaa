"""Masks by kind of layer against values written out by hand, and packed documents against the same alone."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, MistralConfig

from trainer.config.tune import TuneConfig, TuneMethod
from trainer.model.causal import CausalLM, body_of
from trainer.model.head.head import install_loss_head
from trainer.model.head.nll import Nll
from trainer.model.masks import block_mask, layer_kinds, layer_masks, reach
from trainer.model.tune.adapters import apply_tuning

SEGMENTS = torch.tensor([[0, 0, 0, 0, 1, 1, 1]])
POSITIONS = torch.tensor([[0, 1, 2, 3, 0, 1, 2]])
SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "initializer_range": 0.5,
}
BOTH = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5}
WINDOWED = {
    "mistral": {"sliding_window": 5},
    "mixtral": {"sliding_window": 5, "num_local_experts": 4},
    "ministral": BOTH,
    "phi3": {"sliding_window": 5},
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3_moe": {
        "use_sliding_window": True,
        "sliding_window": 5,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
    },
    "starcoder2": {
        "sliding_window": 5,
        "residual_dropout": 0.0,
        "embedding_dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "gemma3_text": {**BOTH, "query_pre_attn_scalar": 8},
    "olmo3": BOTH,
    "exaone4": BOTH,
    "llama4_text": {
        "attention_chunk_size": 5,
        "num_hidden_layers": 4,
        "intermediate_size_mlp": 24,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
    },
}
LENGTHS = [13, 3, 8]


def rows(mask):
    return ["".join(".x"[int(allowed)] for allowed in row) for row in mask[0, 0]]


def test_block_mask_is_causal_inside_documents_and_empty_between_them():
    assert rows(block_mask(SEGMENTS)) == [
        "x......",
        "xx.....",
        "xxx....",
        "xxxx...",
        "....x..",
        "....xx.",
        "....xxx",
    ]


def test_a_window_of_two_sees_a_token_and_the_one_before_it():
    masks = layer_masks(MistralConfig(sliding_window=2), block_mask(SEGMENTS), POSITIONS)
    assert rows(masks) == ["x......", "xx.....", ".xx....", "..xx...", "....x..", "....xx.", ".....xx"]


def test_chunks_are_counted_from_the_beginning_of_each_document():
    config = AutoConfig.for_model("llama4_text", attention_chunk_size=3, num_hidden_layers=4)
    masks = layer_masks(config, block_mask(SEGMENTS), POSITIONS)
    assert set(masks) == {"chunked_attention", "full_attention"}
    assert rows(masks["full_attention"])[6] == "....xxx"
    assert rows(masks["chunked_attention"]) == [
        "x......",
        "xx.....",
        "xxx....",
        "...x...",
        "....x..",
        "....xx.",
        "....xxx",
    ]


def test_recurrent_layers_get_no_mask_of_pairs_and_unknown_kinds_get_the_mask_as_it_is():
    mask = block_mask(SEGMENTS)
    config = AutoConfig.for_model("qwen3_next", num_hidden_layers=2)
    config.layer_types = ["linear_attention", "full_attention"]
    masks = layer_masks(config, mask, POSITIONS)
    assert masks["linear_attention"] is None and masks["full_attention"] is mask
    config.layer_types = ["of_tomorrow", "full_attention"]
    assert layer_masks(config, mask, POSITIONS) is mask


def test_keys_that_an_architecture_does_not_have_are_not_read():
    kinds = ["full_attention", "sliding_attention"]
    mistral = MistralConfig(sliding_window=4, num_hidden_layers=2, layer_types=kinds)
    assert layer_kinds(mistral) is None
    assert isinstance(layer_masks(mistral, block_mask(SEGMENTS), POSITIONS), torch.Tensor)
    mask = block_mask(SEGMENTS)
    assert layer_masks(AutoConfig.for_model("llama", sliding_window=2), mask, POSITIONS) is mask


def test_keys_of_an_architecture_whose_code_is_not_transformers_own_are_read():
    class Remote:
        def __init__(self, sliding_window=None):
            self.sliding_window = sliding_window

        def get_text_config(self):
            return self

    assert rows(layer_masks(Remote(2), block_mask(SEGMENTS), POSITIONS))[3] == "..xx..."


@pytest.mark.parametrize(
    ("model_type", "options", "expected"),
    [
        ("llama", {}, 0),
        ("mistral", {"sliding_window": 96}, 96),
        ("mistral", {"sliding_window": None}, 0),
        ("llama4_text", {"attention_chunk_size": 70}, 70),
        ("lfm2", {"conv_L_cache": 3}, 3),
    ],
)
def test_reach_is_the_longest_window_chunk_or_convolution(model_type, options, expected):
    assert reach(AutoConfig.for_model(model_type, **options)) == expected


def test_reach_leaves_out_what_packs_are_not_longer_than():
    """A window of 4096 that nothing uses hides no chunk of 256; other families name theirs otherwise."""
    config = AutoConfig.for_model("mistral", sliding_window=4096, chunk_size=256, local_attention=128)
    assert [reach(config, below) for below in (8192, 2048, 200, 100)] == [4096, 256, 128, 0]
    config = AutoConfig.for_model("recurrent_gemma", attention_window_size=64, conv1d_width=4)
    assert [reach(config, below) for below in (128, 64)] == [64, 4]
    assert reach(AutoConfig.for_model("deepseek_v4", compress_rates={"a": 4, "b": 128}), 200) >= 128


def build(model_type):
    """Return two copies of a model in float64, the second for plain transformers."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SHAPE, **WINDOWED[model_type]})
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation="sdpa", experts_implementation="eager"
    ).double()
    model.config.use_cache = False
    return model, copy.deepcopy(model)


def pack():
    generator = torch.Generator().manual_seed(1)
    documents = [torch.randint(2, 40, (1, length), generator=generator) for length in LENGTHS]
    inputs = {
        "input_ids": torch.cat(documents, dim=1),
        "position_ids": torch.cat([torch.arange(length) for length in LENGTHS])[None],
        "attention_mask": block_mask(
            torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))[None]
        ),
    }
    labels = torch.cat([torch.cat([ids[:, 1:], torch.full((1, 1), -100)], dim=1) for ids in documents], dim=1)
    return documents, inputs, labels


def grads_of(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("method", [TuneMethod.full, TuneMethod.lora])
@pytest.mark.parametrize("model_type", WINDOWED)
def test_documents_longer_than_the_window_train_as_they_do_alone(model_type, method):
    """The same model, one document at a time through its own forward; windows and chunks are 5, documents up to 13.

    Some norms and rotary embeddings compute in float32 whatever the model is in, hence 1e-7.
    """
    model, plain = build(model_type)
    if method is TuneMethod.lora:
        for one in (model, plain):
            apply_tuning(one, TuneConfig(method=method, r=2, target=["o_proj"]), seed=0)
            for name, parameter in one.double().named_parameters():
                if ".lora_B." in name:
                    torch.nn.init.constant_(parameter, 0.3)
    install_loss_head(model, 7)
    documents, inputs, labels = pack()
    loss, _ = CausalLM(model).train()(Nll(labels.reshape(-1)), **inputs)
    loss.backward()
    total = torch.zeros((), dtype=torch.float64)
    for ids in documents:
        logits = plain.train()(input_ids=ids).logits
        total = total + torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")
    total.backward()
    assert float(loss.detach()) == pytest.approx(float(total.detach()), rel=1e-7)
    ours, theirs = grads_of(model), grads_of(plain)
    assert set(ours) == set(theirs) and theirs
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-4, atol=1e-6, msg=name)


def test_a_wrong_window_would_be_seen():
    """The test above can fail: without its window, the same model has another loss."""
    model, _ = build("mistral")
    install_loss_head(model, 7)
    model.config = copy.copy(model.config)
    model.config.sliding_window = None
    _, inputs, labels = pack()
    _, right = build("mistral")
    install_loss_head(right, 7)
    one = CausalLM(model)(Nll(labels.reshape(-1)), **inputs)[0]
    other = CausalLM(right)(Nll(labels.reshape(-1)), **inputs)[0]
    assert abs(float(one.detach()) - float(other.detach())) > 1e-3


def test_the_body_of_a_model_is_what_holds_its_embeddings():
    model, _ = build("llama4_text")
    assert model.base_model is model and body_of(model) is model.model
    model, _ = build("mistral")
    assert body_of(model) is model.model


def test_eager_attention_adds_a_mask_of_numbers():
    """A failure points at truth values: added to scores they mask nothing."""
    config = MistralConfig(sliding_window=2)
    seen = layer_masks(config, block_mask(SEGMENTS), POSITIONS)
    config._attn_implementation = "eager"
    added = layer_masks(config, block_mask(SEGMENTS), POSITIONS, torch.bfloat16)
    assert added.dtype is torch.bfloat16 and torch.equal(added == 0, seen)
    assert float(added[~seen].max()) == torch.finfo(torch.bfloat16).min
