"""Memory of mixtures, hybrids and packed bases against what was measured on GPUs (benchmarks/results)."""

import json

import pytest

from tests.house.tree import ROOT
from trainer.command.counted import find_shape, run_shape, tuned_weights
from trainer.command.fitting import fitted
from trainer.config.store import compose_config
from trainer.forecast.memory import forecast

H200_GIB = 139.8
"""What torch reports as the memory of an H200, about."""


@pytest.mark.parametrize(
    ("name", "within"),
    [
        ("qwen3_30b_a3b_6_layers_1xH200_lora_experts", 0.05),
        ("qwen3_30b_a3b_1xH200_lora_4096x1", 0.03),
        ("qwen3_30b_a3b_1xH200_lora", 0.03),
    ],
)
def test_lora_on_a_mixture_takes_what_was_measured(name, within):
    """Adapters of experts are added into a tensor of the experts' size in every layer, which backward needs."""
    record = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))
    (result,) = record["results"]
    assert forecast_of(record, result) == pytest.approx(result["memory_gib"], rel=within)


@pytest.mark.parametrize("name", ["peers_1xH200", "peers_1xH200_fa4", "peers_1xH200_qlora"])
def test_gated_mlps_that_are_one_function_take_what_was_measured(name):
    """LoRA and QLoRA of the 8B shape; what goes into `down` is not kept: 7.0 GiB of 8,192 tokens in 32 layers."""
    record = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))
    ours = [result for result in record["results"] if "32 gated MLPs in one" in (result.get("kernels") or "")]
    assert ours
    for result in ours:
        assert forecast_of(record, result) == pytest.approx(result["memory_gib"], rel=0.03)


def test_pairs_take_what_was_measured_with_prompts_shared_or_not():
    record = json.loads((ROOT / "benchmarks/results/pairs_1xH200.json").read_text(encoding="utf-8"))
    ours = [result for result in record["results"] if result["trainer"] == "ours"]
    assert len(ours) >= 2
    for result in ours:
        found = forecast_of(record, result)
        assert found == pytest.approx(result["memory_gib"], rel=0.03)
        assert found == pytest.approx(result["plan_gib"], abs=0.06)  # what the page says


@pytest.mark.parametrize("word", ["zero=zero3", "zero.expert_parallel=2"])
def test_all_weights_of_a_mixture_take_what_was_measured_sharded_and_with_experts_spread(word):
    """Plain ZeRO-2 of that file was measured while DeepSpeed's own step copied gradients; it is other code now."""
    path = ROOT / "benchmarks/results/qwen3_30b_a3b_6_layers_2xH200.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    (result,) = (result for result in record["results"] if word in result["overrides"])
    assert forecast_of(record, result) == pytest.approx(result["memory_gib"], rel=0.03)


@pytest.mark.parametrize(
    ("name", "within"),
    [
        ("qwen3_30b_a3b_6_layers_1xH200", 0.06),
        ("qwen3_5_9b_8_layers_1xH200", 0.07),
        ("llama3_70b_1xH200_nf4", 0.03),
        ("llama3_70b_1xH200_nf4_recomputed", 0.03),
        ("gemma3_4b_heads128_1xH200_second", 0.03),
    ],
)
def test_a_mixture_a_hybrid_and_a_base_in_nf4_take_about_what_was_measured_on_one_gpu(name, within):
    record = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))
    (result,) = record["results"]
    assert forecast_of(record, result) == pytest.approx(result["memory_gib"], rel=within)


def forecast_of(record, result):
    """Return the forecast in GiB of a case of a file of benchmarks, as a run of it would make it."""
    num_ranks = record["environment"]["gpus_used"]
    words = [word for word in result["overrides"] if not word.startswith(("data=", "data.sources"))]
    shape = ROOT / "benchmarks/shapes" / record["environment"]["shape"]
    config = compose_config([*words, f"model.path={shape}", "run_dir=/nowhere"])
    config = fitted(config, num_ranks, can_load=True, here_gib=H200_GIB).config
    found, _ = find_shape(config.model)
    return forecast(found, run_shape(config, num_ranks), tuned_weights(config, found)).gib
