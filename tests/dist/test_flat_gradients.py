"""Adapters at stage 1: gradients in one flat buffer, added up in float32, averaged over ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.dist.session import config_of, session_of, take_steps
from tests.dist.test_zero import BF16_LOSS, BF16_NORM, assert_close

NUM_STEPS = 4


def totals(mesh: Any) -> list[list[float]]:
    """Return what two parameters and one padding element get in two steps, of three micro-batches and of one."""
    from trainer.engine.flat import FlatGradients

    flat = torch.zeros(6, dtype=torch.bfloat16)
    parameters = [nn.Parameter(flat[0:2]), nn.Parameter(flat[2:5].view(3, 1))]
    gradients = FlatGradients(flat, parameters, [0, 2])
    found = []
    share = 1.0 if mesh.is_first else 3.0
    for step in ([256.0, 1.0, 1.0], [8.0]):
        for index, value in enumerate(step):
            parameters[0].grad = torch.full((2,), value * share, dtype=torch.bfloat16)
            if index == 0:  # no token of the other micro-batches reaches the second
                parameters[1].grad = torch.arange(3, dtype=torch.bfloat16).view(3, 1) * share
            gradients.collect()
            assert all(p.grad is None for p in parameters)
        found.append(gradients.averaged(torch.distributed.group.WORLD, torch.float32).tolist())
    return found


def test_micro_batches_add_up_in_float32_and_a_step_begins_anew(pool):
    """257 has no place in bf16: 256 + 1 + 1 is 256 there. The second step shows what was left of the first."""
    assert pool(1).run(totals)[0] == [[258.0, 258.0, 0.0, 1.0, 2.0, 0.0], [8.0, 8.0, 0.0, 1.0, 2.0, 0.0]]


def test_ranks_get_the_mean(pool):
    expected = [[516.0, 516.0, 0.0, 2.0, 4.0, 0.0], [16.0, 16.0, 0.0, 2.0, 4.0, 0.0]]
    assert pool(2).run(totals) == [expected] * 2


def optimizers(mesh: Any, workspace: str, run_dir: str, variants: list[list[str]]) -> list[str]:
    found = []
    for index, overrides in enumerate(variants):
        with session_of(config_of(workspace, f"{run_dir}/{index}", *overrides)) as session:
            found.append(type(session.policy.engine._ds.optimizer).__name__)
    return found


def test_only_what_trains_little_at_stage_1_has_flat_gradients(pool, workspace, tmp_path):
    lora = "tune.method=lora"
    variants = [
        [lora, "zero.stage=1", "zero.dtype=bf16"],
        [lora, "zero.stage=1", "zero.dtype=bf16", "zero.offload_optimizer=cpu"],
        [lora, "zero.stage=2", "zero.dtype=bf16"],
        ["zero.stage=1", "zero.dtype=bf16"],
    ]
    flat, *others = pool(1).run(
        optimizers, workspace=workspace, run_dir=str(tmp_path), variants=variants, timeout_s=300.0
    )[0]
    assert flat == "FlatZeroOptimizer"
    assert "FlatZeroOptimizer" not in others


def steps(mesh: Any, workspace: str, run_dir: str, variants: list[list[str]]) -> Any:
    results = []
    for index, overrides in enumerate(variants):
        with session_of(config_of(workspace, f"{run_dir}/{index}", *overrides)) as session:
            assert session.shape.num_micro_steps > 1
            results.append(take_steps(session, NUM_STEPS))
    return results


def test_accumulating_in_bf16_takes_the_steps_of_stage_2(pool, workspace, tmp_path):
    """Apart: a micro-batch is lost or counted twice, or what a rank adds up is rounded to bf16 each time."""
    words = ["zero.dtype=bf16", "tune.method=lora", "tune.r=4"]
    variants = [[*words, f"zero.stage={stage}"] for stage in (1, 2)]
    flat, partitioned = pool(2).run(steps, workspace=workspace, run_dir=str(tmp_path), variants=variants)[0]
    assert_close(flat, partitioned, BF16_LOSS, BF16_NORM)
