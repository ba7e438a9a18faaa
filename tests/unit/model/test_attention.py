"""Attention: the fastest that is installed, or a sentence that says how to install the one asked for."""

import pytest

from trainer.config.model import Attention, ModelConfig
from trainer.errors import ModelError
from trainer.model.attention import AttentionChoice, caps_scores, choose_attention, offered

FLASH = [Attention.flash_attention_4, Attention.flash_attention_3, Attention.flash_attention_2]


def test_the_default_is_the_fastest_one_installed_and_sdpa_without_a_gpu():
    assert ModelConfig().attention is Attention.auto
    choice = choose_attention(Attention.auto, None)
    assert (choice.name, choice.reason, choice.is_flash) == ("sdpa", "no GPU", False)


@pytest.mark.parametrize("capability", [None, (7, 0), (9, 0)])
def test_sdpa_can_always_be_asked_for(capability):
    assert choose_attention(Attention.sdpa, capability) == AttentionChoice("sdpa", "asked for")


@pytest.mark.parametrize(
    ("asked", "install"),
    [
        (Attention.flash_attention_4, "pip install flash-attn-4;"),
        (Attention.flash_attention_3, "pip install --no-deps flash-attn-3 --index-url https://"),
        (Attention.flash_attention_2, "pip install --no-build-isolation 'palimpsest-trainer[gpu]';"),
    ],
)
def test_flash_attention_without_a_gpu_is_refused_with_the_install_line(asked, install):
    with pytest.raises(ModelError) as caught:
        choose_attention(asked, None)
    message = str(caught.value)
    assert message.startswith(f"`model.attention` must be usable here, but is {asked.value} instead: ")
    assert "there is no GPU" in message and f"Install it with: {install}" in message
    assert message.endswith("or set model.attention=auto.")


@pytest.mark.parametrize(
    ("asked", "capability", "need"),
    [(FLASH[0], (8, 0), "9.0"), (FLASH[1], (8, 9), "9.0"), (FLASH[2], (7, 5), "8.0")],
)
def test_a_gpu_that_is_too_old_is_named_with_what_is_needed(asked, capability, need):
    with pytest.raises(ModelError) as caught:
        choose_attention(asked, capability)
    have = f"{capability[0]}.{capability[1]}"
    assert f"the GPU has compute capability {have} and it needs {need}" in str(caught.value)


@pytest.mark.parametrize("capability", [(7, 0), (8, 0), (9, 0), (10, 0)])
def test_auto_never_fails_and_says_why(capability):
    choice = choose_attention(Attention.auto, capability)
    assert choice.name in {"sdpa", *(asked.value for asked in FLASH)} and choice.reason
    assert choice.is_flash == (choice.name != "sdpa")
    assert capability >= (8, 0) or not choice.is_flash


def test_float32_takes_sdpa_and_refuses_flash_attention_that_was_asked_for():
    choice = choose_attention(Attention.auto, (9, 0), "fp32")
    assert choice.name == "sdpa" and "float32" in choice.reason
    for asked in FLASH:
        with pytest.raises(ModelError, match=r"`model\.attention` must be usable here"):
            choose_attention(asked, (9, 0), "fp32")


def test_virtual_tokens_take_sdpa_whatever_is_installed():
    choice = choose_attention(Attention.auto, (9, 0), needs_mask=True)
    assert choice.name == "sdpa" and "virtual tokens" in choice.reason


def test_a_model_whose_class_has_no_sdpa_gets_eager_attention_and_that_is_said():
    pytest.importorskip("torch")
    from transformers import Gemma2Config, GptOssConfig, LlamaConfig

    assert offered(LlamaConfig()).has_sdpa
    gemma, gpt_oss = offered(Gemma2Config()), offered(GptOssConfig())
    choice = choose_attention(Attention.auto, None, has=gemma)
    assert choice == AttentionChoice("eager", "no GPU; Gemma2ForCausalLM has no SDPA")
    with pytest.raises(ModelError, match="one that Gemma2ForCausalLM has, but is sdpa instead"):
        choose_attention(Attention.sdpa, None, has=gemma)
    assert gpt_oss.flash <= {
        "flash_attention_4"
    }  # its sinks; what the hub would have to be asked for is not taken
    with pytest.raises(ModelError, match="GptOssForCausalLM has, but is flash_attention_2"):
        choose_attention(Attention.flash_attention_2, (9, 0), has=gpt_oss)
    assert choose_attention(Attention.eager, (9, 0), has=offered(LlamaConfig())).name == "eager"


def test_the_sizes_of_heads_are_read_where_a_family_writes_them():
    pytest.importorskip("torch")
    from transformers import DeepseekV3Config, Gemma4TextConfig, LlamaConfig, Qwen3Config

    assert offered(LlamaConfig(hidden_size=96, num_attention_heads=4)).head_dims == (24,)
    assert offered(Qwen3Config(hidden_size=96, num_attention_heads=4, head_dim=64)).head_dims == (64,)
    assert offered(Gemma4TextConfig(head_dim=32, global_head_dim=64)).head_dims == (32, 64)
    assert offered(DeepseekV3Config(qk_nope_head_dim=12, qk_rope_head_dim=4)).head_dims == (16,)


def test_a_cap_on_scores_keeps_sdpa_away_whatever_the_class_says():
    pytest.importorskip("torch")
    from transformers import Gemma2Config, LlamaConfig

    assert caps_scores(Gemma2Config()) and not caps_scores(Gemma2Config(attn_logit_softcapping=None))
    assert not caps_scores(LlamaConfig())
    # No Llama caps its scores; a configuration that asks for it stands for a class that knows of caps and SDPA.
    assert not offered(LlamaConfig(attn_logit_softcapping=50.0)).has_sdpa
