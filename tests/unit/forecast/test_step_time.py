"""The forecast of a step's time against the steps that benchmarks/results hold, and its parts against each other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.house.tree import ROOT
from trainer.command.counted import find_shape, run_shape, tuned_weights
from trainer.command.fitting import fitted
from trainer.config.store import compose_config
from trainer.forecast.memory import RunShape, Weights
from trainer.forecast.shapes import DecoderShape
from trainer.forecast.step_time import DEVICES, find_device, step_time, why_not_timed
from trainer.metrics.flops import peak_flops

ALLOWED = 0.15
SHAPES = ("llama3_8b", "llama3_70b")


def timed() -> Iterator[Any]:
    """Yield (environment, result) of dense runs whose adapters are fused, as they are now."""
    for path in sorted((ROOT / "benchmarks/results").glob("llama3_*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        for result in record["results"]:
            is_tuned = any(word.startswith("tune=") for word in result["overrides"])
            is_older = is_tuned and "fused" not in (result.get("kernels") or "")
            is_older |= any(word.startswith("zero.extra=") for word in result["overrides"])  # DeepSpeed's own
            if "step_time_s" not in result or "plain loop" in result["case"] or is_older:
                continue
            label = f"{path.stem}:{result['case']}:{len(result['overrides'])}"
            yield pytest.param(record["environment"], result, id=label)


def of_record(environment: dict[str, Any], result: dict[str, Any]) -> tuple[DecoderShape, RunShape, Weights]:
    words = [
        word for word in result["overrides"] if not word.startswith(("data=", "data.sources", "model.kind"))
    ]
    shape = ROOT / "benchmarks/shapes" / environment.get("shape", "llama3_8b")
    config = compose_config([*words, f"model.path={shape}", "run_dir=/nowhere"])
    num_ranks = environment["gpus_used"]
    config = fitted(config, num_ranks, can_load=False, here_gib=139.8).config
    found, _ = find_shape(config.model)
    run = replace(run_shape(config, num_ranks), is_fused="liger" in (result.get("kernels") or ""))
    return found, run, tuned_weights(config, found)


def mean_len(result: dict[str, Any], shape: DecoderShape, weights: Weights, peak: float) -> float:
    """Return what a record's MFU says of the lengths of its documents."""
    flops = result["mfu"] * peak / result["tokens_per_s_per_gpu"]
    matmul = shape.num_params - shape.embeddings
    products = 6 * matmul if weights.is_full else 4 * matmul + 6 * weights.num_trainable
    return (flops - products) / (6 * shape.q_dim * shape.num_layers)


@pytest.mark.parametrize(("environment", "result"), timed())
def test_a_step_takes_what_was_measured(environment: dict[str, Any], result: dict[str, Any]) -> None:
    shape, run, weights = of_record(environment, result)
    name = environment["gpus"][0]
    device, peak = find_device(name), peak_flops(name)
    assert device is not None and peak is not None and why_not_timed(shape, run) is None
    found = step_time(shape, run, weights, device, mean_len(result, shape, weights, peak))
    off = found.seconds / result["step_time_s"] - 1
    print(f"{found.seconds:.3f} s for {result['step_time_s']:.3f}: {100 * off:+.1f} %")
    assert abs(off) <= ALLOWED
    assert found.tokens_per_s_per_gpu == pytest.approx(result["tokens_per_s_per_gpu"], rel=ALLOWED + 0.05)


def test_at_least_fifteen_were_measured() -> None:
    assert len(list(timed())) >= 15


def test_a_gpu_is_found_by_its_name_and_has_the_peak_that_mfu_is_counted_with() -> None:
    for device in DEVICES:
        assert find_device(f"NVIDIA {device.name}") is device
        assert device.peak_flops == peak_flops(f"NVIDIA {device.name}")
    assert find_device("NVIDIA A100-SXM4-80GB") == find_device("a100")
    assert find_device("NVIDIA GeForce RTX 4090") is None


def llama(stage: int, num_ranks: int, **changed: Any) -> tuple[DecoderShape, RunShape, Weights]:
    path = ROOT / "benchmarks/shapes/llama3_8b"
    words = [f"model.path={path}", "run_dir=/nowhere", f"zero.stage={stage}", "model.checkpoint_layers=0"]
    words += [
        "data.seq_len=4096",
        f"train.global_batch_tokens={4096 * num_ranks}",
        "data=text",
        "train.max_steps=1",
    ]
    config = fitted(compose_config(["model=benchmark", *words]), num_ranks, can_load=False).config
    shape, _ = find_shape(config.model)
    return shape, replace(run_shape(config, num_ranks), **changed), tuned_weights(config, shape)


def test_what_takes_more_takes_longer() -> None:
    h200, h100, a100 = DEVICES
    shape, run, weights = llama(2, 8)
    plain = step_time(shape, run, weights, h200, 300)
    assert (
        step_time(shape, replace(run, checkpoint_layers=-1), weights, h200, 300).seconds > 1.2 * plain.seconds
    )
    assert step_time(shape, replace(run, is_fused=False), weights, h200, 300).memory > plain.memory
    assert step_time(shape, run, weights, h200, 4096).attention == pytest.approx(plain.attention * 4096 / 300)
    slower = [step_time(shape, run, weights, device, 300).seconds for device in (h200, h100, a100)]
    assert slower == sorted(slower)
    # 2 x 8.03e9 bytes of gradients scattered and as many of weights gathered, 7/8 of each, of which 0.4 is not hidden.
    away = step_time(shape, run, weights, h200, 300, link_bytes_s=40e9)
    assert away.links == pytest.approx(0.4 * 2 * 2 * 8_030_261_248 * 7 / 8 / 40e9)
    assert step_time(*llama(2, 1), h200, 300).links == 0


def test_what_was_not_measured_is_not_forecast() -> None:
    shape, run, _ = llama(2, 2)
    assert why_not_timed(shape, run) is None
    assert why_not_timed(replace(shape, experts=10), run) == "mixtures of experts"
    for changed, why in (
        ({"element_bytes": 4}, "float32"),
        ({"is_flash": False}, "attention that is not flash attention"),
        ({"offload_optimizer": True}, "offload"),
    ):
        assert why_not_timed(shape, replace(run, **changed)) == why
