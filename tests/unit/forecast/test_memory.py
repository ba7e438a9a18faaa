"""The forecast against the peaks that benchmarks/results hold, and its parts against hand-made sums."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import eager_attention_forward
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from tests.house.tree import ROOT
from trainer.command.counted import run_shape
from trainer.command.fitting import fitted
from trainer.config.store import compose_config
from trainer.forecast.activations import layer_bytes, mask_bytes, score_bytes
from trainer.forecast.adapter_sizes import adapter_weights
from trainer.forecast.memory import GIB, RunShape, attention_of, forecast, full_weights
from trainer.forecast.shapes import decoder_shape
from trainer.forecast.states import states_of

LLAMA_JSON = ROOT / "benchmarks/shapes/llama3_8b/config.json"
LLAMA = decoder_shape(json.loads(LLAMA_JSON.read_text(encoding="utf-8")), "llama3_8b")
N = LLAMA.num_params
H100_GIB = 79.6
"""What nvidia-smi reports as the memory of an H100, on which all cases ran that were left to the forecast."""
H200_GIB = 139.8
"""What torch reports as the memory of an H200, about."""


def measured():
    """Yield (file and case, ranks, overrides, peak GiB or None where memory ran out) of the trainer itself."""
    for path in sorted((ROOT / "benchmarks/results").glob("llama3_8b_*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        for result in record["results"]:
            if "plain loop" in result["case"]:
                continue
            peak = None if result.get("failed") == "out of memory" else result["memory_gib"]
            label = f"{path.stem}:{result['case']}"
            yield pytest.param(record["environment"]["gpus_used"], result["overrides"], peak, id=label)


def of_overrides(overrides, num_ranks):
    """Return what the configuration of a benchmark decides; its paths are not in the record."""
    own = [word for word in overrides if not word.startswith(("data=", "data.sources", "model.kind="))]
    config = compose_config([*own, f"model.path={LLAMA_JSON.parent}", "run_dir=/nowhere"])
    # What was left to the forecast is what it chooses still, but for 6 layers that it would recompute no more.
    if "train.micro_batch_size=4" in own and "zero=auto" in own:
        config.model.checkpoint_layers = 6
    return run_shape(fitted(config, num_ranks, can_load=False, here_gib=H100_GIB).config, num_ranks)


def weights_of(overrides):
    values = dict(word.split("=", 1) for word in overrides)
    if values.get("tune", "full") == "full":
        return full_weights(LLAMA)
    # Gated MLPs of these runs were not yet one function with their adapters.
    in_nf4 = values["tune"] == "qlora"
    return adapter_weights(LLAMA, int(values["tune.r"]), base_in_nf4=in_nf4, is_one_function=False)


def test_there_are_measurements():
    assert sum(case.values[2] is not None for case in measured()) >= 6


@pytest.mark.parametrize(("num_ranks", "overrides", "peak_gib"), measured())
def test_the_forecast_is_within_3_percent_of_every_measured_peak(num_ranks, overrides, peak_gib):
    forecasted = forecast(LLAMA, of_overrides(overrides, num_ranks), weights_of(overrides)).gib
    if peak_gib is None:
        assert forecasted > H200_GIB
        return
    assert forecasted < H200_GIB
    assert forecasted == pytest.approx(peak_gib, rel=0.03)


BIG = RunShape(
    stage=0,
    world_size=8,
    micro_batch_size=1,
    seq_len=8,
    num_micro_steps=1,
    checkpoint_layers=-1,
    loss_chunk_tokens=8,
)
"""So few tokens that states decide the peak."""


@pytest.mark.parametrize(
    ("stage", "micro_steps", "bytes_a_parameter"),
    [
        # bf16 weights, fp32 master and moments, and gradients: 2 + 12 + 2, with an fp32 copy at the step.
        (0, 1, 2 + 12 + 2 + 4),
        # Accumulated gradients are whole at stage 1, in fp32, beside those of the last micro-step in bf16.
        (1, 4, 2 + 12 / 8 + 4 + 2),
        # All but weights is shared out by 8, with a flat copy of gradients and one in fp32 at the step.
        (1, 1, 2 + 12 / 8 + 2 / 8 + 6 / 8),
        # Stage 2's own step copies nothing.
        (2, 1, 2 + 12 / 8 + 2 / 8),
        (2, 4, 2 + 12 / 8 + 4 / 8),
    ],
)
def test_states_are_the_bytes_a_parameter_of_the_stage(stage, micro_steps, bytes_a_parameter):
    run = replace(BIG, stage=stage, num_micro_steps=micro_steps, reduce_bucket_size=0)
    peak = forecast(LLAMA, run, full_weights(LLAMA)).parts
    states = peak.parameters + peak.gradients + peak.optimizer
    assert states == pytest.approx(N * bytes_a_parameter, rel=1e-6)


def test_keys_of_deepspeeds_own_bring_the_copies_of_its_step():
    words = [
        "model=benchmark",
        f"model.path={LLAMA_JSON.parent}",
        "run_dir=/nowhere",
        "data=text",
        "train.max_steps=1",
    ]
    words += [
        "zero.stage=2",
        "zero.dtype=bf16",
        "model.checkpoint_layers=-1",
        "train.global_batch_tokens=65536",
        "data.seq_len=4096",
    ]
    own = "zero.extra={zero_optimization: {allgather_partitions: true}}"
    plain, deepspeeds = (
        states_of(run_shape(compose_config([*words, *more]), 8), full_weights(LLAMA)).step
        for more in ([], [own])
    )
    # Two micro-steps: gradients in fp32, and a flat copy of them.
    assert (plain, deepspeeds) == (0, N * 4 / 8)


@pytest.mark.parametrize(("micro_steps", "gradient_bytes"), [(1, 2), (4, 4)])
def test_stage_3_shares_out_everything(micro_steps, gradient_bytes):
    run = replace(BIG, stage=3, num_micro_steps=micro_steps)
    parts = forecast(LLAMA, run, full_weights(LLAMA)).parts
    assert parts.parameters == N * 2 / 8
    assert parts.gradients == N * gradient_bytes / 8
    # At most 3e9 gathered elements, one prefetch of 4.4e8 and the reduce bucket, in bf16.
    assert parts.buffers == pytest.approx(2 * (3e9 + 4.4e8 + 2e8))


def test_one_rank_of_stage_3_gathers_nothing():
    run = replace(BIG, stage=3, world_size=1, reduce_bucket_size=0)
    assert forecast(LLAMA, run, full_weights(LLAMA)).parts.buffers == 0


def test_offload_leaves_no_optimizer_state_on_the_gpu():
    run = replace(BIG, stage=3, offload_optimizer=True)
    parts = forecast(LLAMA, run, full_weights(LLAMA)).parts
    assert parts.optimizer == parts.gradients == 0 and parts.parameters == N * 2 / 8
    assert forecast(LLAMA, replace(run, offload_param=True), full_weights(LLAMA)).parts.parameters == 0


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({"stage": 0}, 2),
        ({"stage": 1}, 2 / 8),
        ({"stage": 2, "element_bytes": 4}, 4 / 8),
        ({"stage": 3}, 2 / 8),
        ({"stage": 2, "offload_optimizer": True}, 0),
    ],
)
def test_the_weights_that_training_began_with_are_held_where_the_masters_are(changes, more):
    """In the dtype of the weights, which holds them exactly."""
    plain = replace(BIG, **changes)
    first, second = (states_of(run, full_weights(LLAMA)) for run in (plain, replace(plain, holds_start=True)))
    assert second.optimizer - first.optimizer == N * more
    assert replace(second, optimizer=first.optimizer) == first


@pytest.mark.parametrize("stage", [1, 2])
def test_spread_experts_leave_a_rank_its_part_of_weights_and_the_same_state(stage):
    path = ROOT / "benchmarks/shapes/qwen3_30b_a3b/config.json"
    shape = decoder_shape(json.loads(path.read_text(encoding="utf-8")), "qwen3_30b_a3b")
    run = replace(BIG, stage=stage)
    whole, spread = (
        forecast(shape, replace(run, expert_parallel=size), full_weights(shape)).parts for size in (1, 4)
    )
    assert whole.parameters - spread.parameters == shape.experts * 2 * 3 / 4
    # With spread experts stage 2 is DeepSpeed's own: a flat copy of gradients and one in fp32 at the step.
    copies = shape.num_params * 6 / 8 if stage == 2 else 0
    assert spread.optimizer - whole.optimizer == copies
    assert not replace(run, expert_parallel=4).is_refused
    assert replace(run, stage=0, expert_parallel=4).is_refused
    assert replace(run, offload_optimizer=True, expert_parallel=4).is_refused


def test_ranks_that_share_packs_keep_their_part_of_the_activations_and_all_of_the_state():
    run = replace(BIG, checkpoint_layers=0)
    whole, shared = (
        forecast(LLAMA, replace(run, sequence_parallel=size), full_weights(LLAMA)).parts for size in (1, 4)
    )
    assert shared.activations == whole.activations / 4
    assert (shared.parameters, shared.optimizer) == (whole.parameters, whole.optimizer)
    words = ["tune=full", "zero=zero3", "data.seq_len=8192", "train.global_batch_tokens=16384"]
    asked = of_overrides([*words, "train.sequence_parallel=4"], 8)
    assert (asked.num_tokens, asked.num_micro_steps, asked.world_size) == (2048, 1, 8)


def test_a_layer_of_llama_keeps_139_kb_a_token():
    assert layer_bytes(LLAMA, 2, is_flash=True, is_fused=True) == 2 * 69_632 + 4 * 32


def test_without_fused_kernels_and_flash_attention_more_is_kept():
    fused = layer_bytes(LLAMA, 2, is_flash=True, is_fused=True)
    # fp32 copies in two norms, and the activation of the gate.
    assert layer_bytes(LLAMA, 2, is_flash=True, is_fused=False) == fused + 4 * 2 * 4096 + 2 * 14336
    # k and v repeated to all heads.
    assert layer_bytes(LLAMA, 2, is_flash=False, is_fused=True) == fused + 2 * 2 * (4096 - 1024)
    assert mask_bytes(2 * 4096**2, is_flash=False, element_bytes=2) == 2 * 4096**2 * 2


@pytest.mark.parametrize(("dtype", "element_bytes"), [(torch.bfloat16, 2), (torch.float32, 4)])
def test_eager_attention_keeps_the_scores_that_torch_saves(dtype, element_bytes):
    length = 256
    query = torch.randn(1, 32, length, 8, dtype=dtype, requires_grad=True)
    mask, saved = torch.zeros(1, 1, length, length, dtype=dtype), {}
    module = SimpleNamespace(num_key_value_groups=4, training=True)
    keys = torch.randn(1, 8, length, 8, dtype=dtype, requires_grad=True)

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.nbytes() > length * length * 32:  # one of scores
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found, _ = eager_attention_forward(module, query, keys, keys, mask, 1.0)
    assert sum(saved.values()) == score_bytes(LLAMA, length**2, element_bytes)
    assert found.requires_grad


@pytest.mark.parametrize("trains", [True, False])
def test_experts_keep_what_torch_saves(trains):
    """Of frozen ones what goes into their matrices is not kept."""
    num_tokens, hidden, width, chosen = 64, 32, 16, 2
    options = {
        "hidden_size": hidden,
        "moe_intermediate_size": width,
        "num_experts": 4,
        "num_experts_per_tok": chosen,
    }
    config = AutoConfig.for_model("qwen3_moe", **options)
    config._experts_implementation = "grouped_mm"
    experts = Qwen3MoeExperts(config).requires_grad_(trains)
    hidden_NH = torch.randn(num_tokens, hidden, requires_grad=True)
    weights_NK = torch.rand(num_tokens, chosen, requires_grad=True)
    index_NK = torch.arange(num_tokens * chosen).view(num_tokens, chosen) % 4
    own, saved = {p.untyped_storage().data_ptr() for p in experts.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if tensor.is_floating_point() and storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        experts(hidden_NH, index_NK, weights_NK)
    mixture = replace(LLAMA, hidden_size=hidden, ffn_width=chosen * width, routed_copies=2 * chosen)
    without = replace(mixture, ffn_width=0, routed_copies=0)
    counted = [layer_bytes(shape, 4, True, True, trains) for shape in (mixture, without)]
    weights_of_choice = num_tokens * chosen * 4
    assert sum(saved.values()) == num_tokens * (counted[0] - counted[1]) + weights_of_choice


def test_eager_attention_is_counted_where_a_model_has_no_other():
    softcapped = decoder_shape(
        json.loads(LLAMA_JSON.read_text(encoding="utf-8")) | {"attn_logit_softcapping": 50.0}, "capped"
    )
    run = replace(BIG, stage=1, is_flash=False, micro_batch_size=1, seq_len=2048, checkpoint_layers=-1)
    assert [attention_of(LLAMA, run), attention_of(softcapped, run)] == ["SDPA", "eager attention"]
    assert attention_of(LLAMA, replace(run, is_eager=True)) == "eager attention"
    # A layer made anew: 32 heads of 2048 x 2048 scores in float32 and bf16, and as much of gradients.
    weights, run = adapter_weights(LLAMA, 8), replace(run, loss_chunk_tokens=64)
    peaks = [forecast(shape, run, weights) for shape in (LLAMA, softcapped)]
    assert {peak.moment for peak in peaks} == {"backward of a layer"}
    assert peaks[1].parts.activations - peaks[0].parts.activations == 32 * 2048**2 * (6 + 6)
    no_flash = replace(softcapped, has_flash=False)
    flash = replace(run, is_flash=True)
    assert [attention_of(softcapped, flash), attention_of(no_flash, flash)] == [
        "flash attention",
        "eager attention",
    ]
    assert attention_of(no_flash, replace(flash, names_flash=True)) == "flash attention"


@pytest.mark.parametrize(
    "smaller",
    [
        {"checkpoint_layers": 16},
        {"checkpoint_layers": -1},
        {"micro_batch_size": 1},
        {"seq_len": 4096},
        {"loss_chunk_tokens": 4096},
        {"world_size": 16},
    ],
)
@pytest.mark.parametrize("stage", [2, 3])
def test_whatever_should_save_memory_does(stage, smaller):
    run = replace(
        BIG, stage=stage, micro_batch_size=2, seq_len=8192, checkpoint_layers=0, loss_chunk_tokens=16384
    )
    before = forecast(LLAMA, run, full_weights(LLAMA)).gib
    assert forecast(LLAMA, replace(run, **smaller), full_weights(LLAMA)).gib < before


def test_layers_recomputed_save_what_they_do_not_keep():
    run = replace(BIG, stage=2, seq_len=8192, loss_chunk_tokens=4096)
    peaks = [
        forecast(LLAMA, replace(run, checkpoint_layers=count), full_weights(LLAMA)).parts.activations
        for count in (8, 16)
    ]
    per_layer = (layer_bytes(LLAMA, 2, True, True) - 2 * 4096) * 8192
    assert peaks[0] - peaks[1] == pytest.approx(8 * per_layer)
    assert 8 * per_layer / GIB > 7
