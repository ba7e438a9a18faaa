"""What a plan counts for parameters, gradients and optimizer state is what DeepSpeed holds, in bytes a parameter.

A failure after an upgrade of DeepSpeed means that it keeps its states otherwise now: trainer/forecast/memory.py.
"""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

from trainer.config.optim import OptimConfig, ZeroConfig
from trainer.dist.mesh import Mesh
from trainer.engine.batch import batch_shape
from trainer.engine.ds_config import deepspeed_dict
from trainer.engine.initialize import build_engine
from trainer.forecast.memory import RunShape, Weights
from trainer.forecast.states import states_of
from trainer.model.head.ask import Ask

WIDTH, NUM_LAYERS = 256, 32
NUM_PARAMS = WIDTH * WIDTH * NUM_LAYERS


class Stack(torch.nn.Sequential):
    """Layers that are asked as a model is."""

    def forward(self, ask: Any, input: Any) -> Any:
        return super().forward(input)


def live_storages() -> dict[int, torch.UntypedStorage]:
    """Return the storages that tensors of this process hold, by address."""
    gc.collect()
    tensors = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)]
    tensors += [t.grad for t in tensors if t.is_leaf and t.grad is not None]
    return {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}


def measure(mesh: Mesh, stage: int, num_micro_steps: int) -> dict[str, float]:
    """Return what lives after backward and inside the optimizer, in bytes a parameter; the second step."""
    others = live_storages()  # of engines before, held here so that no address is used again
    gc.freeze()  # they are passed over from here on

    def live_bytes() -> int:
        return sum(one.nbytes() for address, one in live_storages().items() if address not in others)

    layers = [torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(NUM_LAYERS)]
    model = Stack(*layers).bfloat16()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    shape = batch_shape(num_micro_steps * mesh.num_ranks, 1, 1, mesh.num_ranks)
    zero = ZeroConfig(
        stage=stage, dtype="bf16", reduce_bucket_size=1000, persistence_threshold=0, sub_group_size=10**6
    )
    engine = build_engine(model, optimizer, deepspeed_dict(zero, OptimConfig(), shape, on_gpu=False))
    inside: list[int] = []
    step = optimizer.step

    def counted(*arguments: Any, **named: Any) -> Any:
        inside.append(live_bytes())
        return step(*arguments, **named)

    optimizer.step = counted  # type: ignore[method-assign]
    after_backward = 0
    for _ in range(2):
        for micro in range(num_micro_steps):
            loss = (
                engine.forward(Ask(), input=torch.ones(1, WIDTH, dtype=torch.bfloat16)).float().pow(2).sum()
            )
            engine.backward(loss, micro == num_micro_steps - 1)
        del loss
        after_backward = live_bytes()
        engine.step()
    gc.unfreeze()
    found = {"after_backward": after_backward, "inside_optimizer": max(inside)}
    return {key: value / NUM_PARAMS for key, value in found.items()}


@pytest.mark.parametrize(
    ("stage", "num_micro_steps"),
    [
        pytest.param(0, 1, marks=pytest.mark.slow),
        pytest.param(1, 1, marks=pytest.mark.slow),
        (1, 2),
        pytest.param(2, 1, marks=pytest.mark.slow),
        (2, 2),
        pytest.param(3, 1, marks=pytest.mark.slow),
        (3, 2),
    ],
)
def test_states_are_what_deepspeed_holds(pool, stage, num_micro_steps):
    num_ranks = 2
    found = pool(num_ranks).run(measure, stage=stage, num_micro_steps=num_micro_steps)[0]
    run = RunShape(stage, num_ranks, 1, 1, num_micro_steps, 0, 1, sub_group_size=10**6)
    states = states_of(run, Weights(NUM_PARAMS))
    always = states.parameters + states.optimizer
    # One layer in fp32, which DeepSpeed may still hold from its last reduction, is 4/32 of a byte.
    room = 0.2
    assert found["after_backward"] == pytest.approx((always + states.at_end) / NUM_PARAMS, abs=room)
    # The copies of a step do not all live while the optimizer itself runs; none is forgotten.
    at_step = (always + states.at_step + states.step) / NUM_PARAMS
    assert found["inside_optimizer"] <= at_step + room
