"""The change that is advised makes the run fit, and no part of it would."""

import itertools
from dataclasses import replace

import pytest

from trainer.forecast.advice import smallest_change
from trainer.forecast.config_json import shipped_shapes
from trainer.forecast.memory import RunShape, forecast, full_weights
from trainer.forecast.printed import Gpu
from trainer.forecast.shapes import decoder_shape

LLAMA = decoder_shape(shipped_shapes()["meta-llama/Llama-3.1-8B"], "Llama-3.1-8B")
ONE_NODE = RunShape(
    stage=1,
    world_size=8,
    micro_batch_size=4,
    seq_len=4096,
    num_micro_steps=2,
    checkpoint_layers=0,
    loss_chunk_tokens=4096,
)


def applied(run, overrides, num_nodes):
    """Return the run with overrides, its tokens a step the same."""
    values = dict(word.split("=") for word in overrides)
    places = run.world_size // run.sequence_parallel
    packs = places * run.micro_batch_size * run.num_micro_steps
    micro = int(values.get("train.micro_batch_size", run.micro_batch_size))
    factor = int(values.get("cluster.num_nodes", num_nodes)) // num_nodes
    assert packs % (places * factor * micro) == 0
    return replace(
        run,
        stage=int(values.get("zero.stage", run.stage)),
        checkpoint_layers=int(values.get("model.checkpoint_layers", run.checkpoint_layers)),
        micro_batch_size=micro,
        world_size=run.world_size * factor,
        num_micro_steps=packs // (places * factor * micro),
        offload_optimizer=run.offload_optimizer or "zero.offload_optimizer" in values,
    )


@pytest.mark.parametrize("limit_gib", [24, 44, 60, 76, 90, 130])
@pytest.mark.parametrize(
    "run",
    [
        ONE_NODE,
        replace(ONE_NODE, world_size=1, num_micro_steps=16),
        replace(ONE_NODE, stage=3),
        replace(ONE_NODE, sequence_parallel=4, num_micro_steps=1),
    ],
    ids=str,
)
def test_what_is_advised_fits_and_no_part_of_it_would(run, limit_gib):
    weights = full_weights(LLAMA)
    advice = smallest_change(LLAMA, run, weights, limit_gib, num_nodes=2)
    assert advice is not None
    changed = applied(run, advice.overrides, num_nodes=2)
    assert forecast(LLAMA, changed, weights) == advice.peak
    assert advice.peak.gib <= limit_gib
    for count in range(len(advice.overrides)):
        for part in itertools.combinations(advice.overrides, count):
            try:
                fewer = applied(run, part, num_nodes=2)
            except AssertionError:
                continue  # fewer changes would change the tokens of a step
            if not fewer.is_refused and not (fewer.offload_optimizer and fewer.stage == 0):
                assert forecast(LLAMA, fewer, weights).gib > limit_gib, part


def test_a_higher_stage_alone_is_preferred_to_recomputation_when_it_is_enough():
    run = replace(ONE_NODE, micro_batch_size=1, seq_len=2048)
    peaks = {s: forecast(LLAMA, replace(run, stage=s), full_weights(LLAMA)).gib for s in (1, 2)}
    between = (peaks[1] + peaks[2]) / 2
    advice = smallest_change(LLAMA, run, full_weights(LLAMA), between, num_nodes=1)
    assert advice is not None and advice.overrides == ("zero.stage=2",)


def test_a_lower_stage_is_found_where_that_is_what_fits():
    """On one GPU a higher stage shards nothing and has buckets."""
    run = replace(
        ONE_NODE, world_size=1, stage=3, micro_batch_size=1, num_micro_steps=1, checkpoint_layers=-1
    )
    weights = full_weights(LLAMA)
    peaks = [forecast(LLAMA, replace(run, stage=stage), weights).gib for stage in range(4)]
    assert min(peaks[:3]) < peaks[3], "the case is of no use"
    advice = smallest_change(LLAMA, run, weights, min(peaks[:3]) + 0.01, 1, (1,), (False,))
    assert advice is not None and advice.overrides == (f"zero.stage={peaks.index(min(peaks[:3]))}",)


def test_parameters_in_host_memory_stay_at_stage_3():
    run = replace(ONE_NODE, stage=3, offload_param=True, offload_optimizer=True)
    peak = forecast(LLAMA, run, full_weights(LLAMA)).gib
    advice = smallest_change(LLAMA, run, full_weights(LLAMA), peak * 0.7, 1)
    assert advice is None or not any(word.startswith("zero.stage") for word in advice.overrides)


def test_nothing_helps_a_model_that_is_too_large_for_64_times_the_nodes():
    assert smallest_change(LLAMA, replace(ONE_NODE, world_size=1), full_weights(LLAMA), 1.0, 1) is None


def test_the_memory_of_a_gpu_is_told_as_it_was_given():
    assert [str(Gpu(gib, 1.0)) for gib in (4.2, 80.0)] == ["a GPU of 4.2 GiB", "a GPU of 80 GiB"]
