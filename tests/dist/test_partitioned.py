"""ZeRO-2's own reduction: buckets, their order on ranks that see other gradients, and the steps that come of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.dist.test_flat_gradients import NUM_STEPS, optimizers, steps
from tests.dist.test_zero import BF16_LOSS, BF16_NORM, assert_close
from trainer.engine.partitioned import Bucket, cut_into_buckets
from trainer.model.head.ask import Ask

NUM_MICROS = 3
WIDTH = 4


def test_groups_are_cut_between_parameters_and_keep_what_they_say():
    sizes = (3, 2, 4, 9, 1)
    parameters = [nn.Parameter(torch.zeros(size)) for size in sizes]
    optimizer = torch.optim.AdamW(
        [
            {"params": parameters[:4], "weight_decay": 0.5, "name": "decay"},
            {"params": parameters[4:], "weight_decay": 0.0, "lr_factor": 16.0},
        ]
    )
    cut_into_buckets(optimizer, 5)
    found = [[p.numel() for p in group["params"]] for group in optimizer.param_groups]
    assert found == [[3, 2], [4], [9], [1]]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.5, 0.5, 0.0]
    assert optimizer.param_groups[3]["lr_factor"] == 16.0


def test_a_bucket_has_zeros_where_nothing_came_and_adds_up_in_float32():
    """257 has no place in bf16: 256 + 1 is 256 there. The element between and the last are padding."""
    first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3, 1))
    bucket = Bucket([first, second], [0, 3], 8, torch.bfloat16, torch.float32)
    for value in (256.0, 1.0):
        first.grad = torch.full((2,), value)
        bucket.take(0)
        assert first.grad is None and not bucket.is_ready
        bucket.add(bucket.whole())
        bucket.begin()
    assert bucket.own is not None and bucket.own.tolist() == [257.0, 257.0, 0, 0, 0, 0, 0, 0]
    second.grad = torch.tensor([[1.0], [2.0], [3.0]])
    bucket.take(1)
    assert bucket.whole().tolist() == [0, 0, 0, 1, 2, 3, 0, 0]
    second.grad = torch.ones(3, 1)
    with pytest.raises(RuntimeError, match="second gradient"):  # also where the first is on its way
        bucket.take(1)


class Chosen(nn.Module):
    """A layer of its own for each choice, as experts are, and one that nobody takes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.choices = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.last = nn.Linear(WIDTH, 1)

    def forward(self, x: torch.Tensor, choice: int, ask: Any = None) -> torch.Tensor:
        return self.last(torch.tanh(self.choices[choice](self.first(x))))


def micro_batch(step: int, micro: int, rank: int) -> tuple[torch.Tensor, int]:
    """Return inputs and the layer they choose: another on each rank, the third on none."""
    generator = torch.Generator().manual_seed(100 * step + 10 * micro + rank)
    return torch.randn(5, WIDTH, generator=generator), (micro + rank) % 2


def made() -> Chosen:
    torch.manual_seed(0)
    return Chosen()


def weights_after(mesh: Any, elements: int, clip_norm: float) -> Any:
    """Train the module at stage 2 and return its weights, its norms and what the masters hold."""
    from trainer.config.optim import OptimConfig, ZeroConfig
    from trainer.engine.batch import batch_shape
    from trainer.engine.ds_config import deepspeed_dict
    from trainer.engine.initialize import build_engine

    model = made()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    shape = batch_shape(NUM_MICROS * mesh.num_ranks, 1, 1, mesh.num_ranks)
    zero = ZeroConfig(stage=2, dtype="fp32", reduce_bucket_size=elements)
    config = deepspeed_dict(zero, OptimConfig(clip_norm=clip_norm), shape, on_gpu=False)
    engine = build_engine(model, optimizer, config)
    norms = []
    for step in range(3):
        for micro in range(NUM_MICROS):
            x, choice = micro_batch(step, micro, mesh.rank)
            loss = engine.forward(Ask(), x=x, choice=choice).square().sum() * mesh.num_ranks
            engine.backward(loss, micro == NUM_MICROS - 1)
        norms.append(engine.step()[0])
    return [p.detach().tolist() for p in model.parameters()], norms


def plainly(num_ranks: int, clip_norm: float) -> Any:
    model = made()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    norms = []
    for step in range(3):
        for parameter in model.parameters():  # what is flat has zeros where plain torch has no gradient
            parameter.grad = torch.zeros_like(parameter)
        for micro in range(NUM_MICROS):
            for rank in range(num_ranks):
                x, choice = micro_batch(step, micro, rank)
                model(x, choice).square().sum().backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), clip_norm)))
        optimizer.step()
    return [p.detach().tolist() for p in model.parameters()], norms


@pytest.mark.parametrize(("num_ranks", "elements", "clip_norm"), [(1, 8, 1.0), (2, 8, 1.0), (2, 1000, 1e9)])
def test_ranks_that_see_other_layers_take_the_steps_of_one(pool, num_ranks, elements, clip_norm):
    """A hang: ranks send buckets in another order. Other weights: a gradient is lost, or a bucket sent too early."""
    weights, norms = plainly(num_ranks, clip_norm)
    for found, found_norms in pool(num_ranks).run(weights_after, elements=elements, clip_norm=clip_norm):
        assert found_norms == pytest.approx(norms, rel=1e-5)
        for ours, theirs in zip(found, weights, strict=True):
            torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-5, atol=1e-6)


DEEPSPEEDS_OWN = "zero.extra={zero_optimization: {allgather_partitions: true}}"


def test_deepspeeds_own_stage_2_is_there_where_its_keys_or_its_offload_are_asked_for(
    pool, workspace, tmp_path
):
    stage = ["zero.stage=2", "zero.dtype=bf16"]
    variants = [stage, [*stage, DEEPSPEEDS_OWN], [*stage, "zero.offload_optimizer=cpu"]]
    ours, *others = pool(1).run(
        optimizers, workspace=workspace, run_dir=str(tmp_path), variants=variants, timeout_s=300.0
    )[0]
    assert ours == "PartitionedZeroOptimizer"
    assert others == ["DeepSpeedZeroOptimizer"] * 2


def test_steps_are_those_of_deepspeeds_own(pool, workspace, tmp_path):
    words = ["zero.dtype=bf16", "zero.stage=2", "zero.reduce_bucket_size=5000"]
    variants = [words, [*words, DEEPSPEEDS_OWN]]
    ours, theirs = pool(2).run(steps, workspace=workspace, run_dir=str(tmp_path), variants=variants)[0]
    assert len(ours) == NUM_STEPS
    assert_close(ours, theirs, BF16_LOSS, BF16_NORM)
