"""LoRA's arithmetic against peft, and against sums made by hand."""

import itertools

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from trainer.forecast.adapter_sizes import (
    NF4_BYTES,
    RANKS,
    adapter,
    adapter_weights,
    adapters,
    num_adapter_params,
)
from trainer.forecast.config_json import shipped_shapes
from trainer.forecast.memory import GIB, RunShape
from trainer.forecast.shapes import decoder_shape

LLAMA = decoder_shape(shipped_shapes()["meta-llama/Llama-3.1-8B"], "Llama-3.1-8B")
RUN = RunShape(
    stage=3,
    world_size=2,
    micro_batch_size=1,
    seq_len=1024,
    num_micro_steps=2,
    checkpoint_layers=-1,
    loss_chunk_tokens=1024,
)
TINY = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}


@pytest.mark.parametrize("r", [4, 16])
@pytest.mark.parametrize("targets", [None, ["q_proj", "v_proj"], ["down_proj"]], ids=str)
@pytest.mark.parametrize(
    "own",
    [
        {"model_type": "llama"},
        {"model_type": "qwen3", "head_dim": 16},
        {
            "model_type": "qwen2_moe",
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
        },
    ],
    ids=lambda own: own["model_type"],
)
def test_trainable_parameters_are_those_of_peft(own, targets, r):
    config = TINY | own
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
        # A gate of one row is no target of ours: it would hold any rank at 1.
        gates = ["shared_expert_gate"]
        lora = get_peft_model(
            model, LoraConfig(r=r, target_modules=targets or "all-linear", exclude_modules=gates)
        )
    trainable = sum(p.numel() for p in lora.parameters() if p.requires_grad)
    assert num_adapter_params(decoder_shape(config, "here"), r, targets) == trainable


def test_r_16_on_all_linear_layers_of_llama_8b_trains_42_million():
    row = adapter(LLAMA, RUN, 16)
    # A layer: q, o 2 x (4096 + 4096), k, v 2 x (4096 + 1024), gate, up, down 3 x (4096 + 14336).
    assert row.num_params == 32 * 16 * (2 * 8192 + 2 * 5120 + 3 * 18432) == 41_943_040
    assert row.share == row.num_params / (8_030_261_248 + row.num_params)
    assert row.adapter_bytes == 2 * row.num_params
    assert row.checkpoint_bytes == 14 * row.num_params


def test_rows_grow_with_r():
    rows = adapters(LLAMA, RUN)
    assert [row.r for row in rows] == list(RANKS) == [4, 8, 16, 32, 64, 128, 256]
    for small, large in itertools.pairwise(rows):
        assert large.num_params == 2 * small.num_params
        assert large.peak_gib > small.peak_gib
        assert large.peak_stage3_gib > small.peak_stage3_gib
        assert large.peak_nf4_gib > small.peak_nf4_gib


def test_the_base_is_kept_whole_once_and_in_4_bits_where_asked():
    frozen = adapter_weights(LLAMA, 16)
    assert frozen.frozen_bytes == 2 * 8_030_261_248 and not frozen.is_full
    nf4 = adapter_weights(LLAMA, 16, base_in_nf4=True)
    linears = LLAMA.attention + LLAMA.mlp  # Llama has no biases
    assert nf4.frozen_bytes == pytest.approx(linears * NF4_BYTES + 2 * (8_030_261_248 - linears))
    # 4 bits a weight, one 8-bit constant for 64 weights, one fp32 constant for 256 of those.
    assert pytest.approx((4 + 8 / 64 + 32 / (64 * 256)) / 8, rel=1e-3) == NF4_BYTES
    assert nf4.dequantized_bytes == 2 * 4096 * 14336
    saved_gib = (frozen.frozen_bytes - nf4.frozen_bytes - nf4.dequantized_bytes) / GIB
    row = adapter(LLAMA, RUN, 16)
    assert row.peak_gib - row.peak_nf4_gib == pytest.approx(saved_gib, abs=0.01)


def test_adapters_save_gradients_and_optimizer_state_of_the_base():
    one_rank = RunShape(1, 1, 1, 1024, 1, -1, 1024)
    base_gib = 2 * 8_030_261_248 / GIB
    peak = adapter(LLAMA, one_rank, 16).peak_gib
    assert base_gib < peak < base_gib + 4
