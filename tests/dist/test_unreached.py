"""Ranks whose tokens choose other experts, or none with weights: none waits for another, and steps are those of one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.dist.family import make_base
from tests.dist.session import config_of, session_of, take_steps
from tests.dist.test_mixtures import LORA
from tests.dist.test_zero import FP32, assert_close

WIDTH, NUM_EXPERTS, NUM_MICROS, NUM_STEPS = 4, 4, 2, 3
BEYOND = NUM_EXPERTS
"""The choice of an expert without weights."""
CHOICES = [[[0, 1, 0], [BEYOND] * 3], [[2, BEYOND, 3], [0, 0, 0]], [[BEYOND] * 3, [1, 2, 3]]]
"""Of three tokens, by micro-batch and rank."""


class Fused(nn.Module):
    """Experts in tensors, with an activation that is called for each that a token chose."""

    def __init__(self, is_constant: bool) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(NUM_EXPERTS, WIDTH, WIDTH))
        self.down = nn.Parameter(torch.randn(NUM_EXPERTS, WIDTH, WIDTH))
        self.act, self.same, self.is_constant = nn.Tanh(), nn.Identity(), is_constant

    def expert(self, x_NH: Tensor, index: int) -> Tensor:
        return self.act(x_NH @ self.up[index]) @ self.down[index]

    def forward(self, x_NH: Tensor, choice_N: Tensor) -> Tensor:
        y_NH = torch.zeros_like(x_NH)
        for index in choice_N.unique().tolist():
            rows = (choice_N == index).nonzero()[:, 0]
            if index < NUM_EXPERTS:
                y_NH.index_add_(0, rows, self.expert(x_NH[rows], index))
            elif not self.is_constant:
                y_NH.index_add_(0, rows, self.same(x_NH[rows]))
        return y_NH


class Listed(Fused):
    """The same with a module for each expert, as code that comes with a model has it."""

    def __init__(self, is_constant: bool) -> None:
        super().__init__(is_constant)
        del self.up, self.down
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(NUM_EXPERTS))

    def expert(self, x_NH: Tensor, index: int) -> Tensor:
        return self.act(self.experts[index](x_NH))


class Layer(nn.Module):
    def __init__(self, mixture: nn.Module) -> None:
        super().__init__()
        self.mixture, self.after = mixture, nn.Linear(WIDTH, WIDTH)

    def forward(self, x_NH: Tensor, choice_N: Tensor) -> Tensor:
        return self.after(x_NH) + self.mixture(x_NH, choice_N=choice_N)


class Mixtures(nn.Module):
    """As many layers as experts; what the first experts are given wants no gradient."""

    def __init__(self, kind: type[Fused], is_constant: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(kind(is_constant)) for _ in range(NUM_EXPERTS))
        self.config = SimpleNamespace(to_dict=lambda: {"num_experts": NUM_EXPERTS, "num_hidden_layers": 4})

    def forward(self, x_NH: Tensor, choice_N: Tensor, ask: Any = None) -> Tensor:
        for layer in self.layers:
            x_NH = torch.tanh(layer(x_NH, choice_N))
        return x_NH


def made(kind: str, is_constant: bool) -> Mixtures:
    torch.manual_seed(0)
    return Mixtures({"fused": Fused, "listed": Listed}[kind], is_constant)


def micro_batch(step: int, micro: int, rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 * step + 10 * micro + rank)
    choice = CHOICES[(step + micro) % len(CHOICES)][rank]
    return torch.randn(3, WIDTH, generator=generator), torch.tensor(choice)


def weights_after(mesh: Any, kind: str, is_constant: bool, stage: int, bucket: int) -> Any:
    """Train the mixtures and return their weights and the norms of the gradients."""
    from trainer.config.optim import OptimConfig, ZeroConfig
    from trainer.engine.batch import batch_shape
    from trainer.engine.ds_config import deepspeed_dict
    from trainer.engine.gathering import gathered
    from trainer.engine.initialize import build_engine
    from trainer.model.head.ask import Ask

    model = made(kind, is_constant)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    shape = batch_shape(NUM_MICROS * mesh.num_ranks, 1, 1, mesh.num_ranks)
    zero = ZeroConfig(stage=stage, dtype="fp32", reduce_bucket_size=bucket)
    config = deepspeed_dict(zero, OptimConfig(clip_norm=1e9), shape, on_gpu=False)
    engine = build_engine(model, optimizer, config)
    norms = []
    for step in range(NUM_STEPS):
        for micro in range(NUM_MICROS):
            x_NH, choice_N = micro_batch(step, micro, mesh.rank)
            loss = engine.forward(Ask(), x_NH=x_NH, choice_N=choice_N).square().sum() * mesh.num_ranks
            engine.backward(loss, micro == NUM_MICROS - 1)
        norms.append(engine.step()[0])
    with gathered(list(model.parameters())):
        return [p.detach().tolist() for p in model.parameters()], norms


def plainly(kind: str, is_constant: bool, num_ranks: int) -> Any:
    model = made(kind, is_constant)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    norms = []
    for step in range(NUM_STEPS):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        for micro in range(NUM_MICROS):
            for rank in range(num_ranks):
                model(*micro_batch(step, micro, rank)).square().sum().backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 1e9)))
        optimizer.step()
    return [p.detach().tolist() for p in model.parameters()], norms


@pytest.mark.parametrize("bucket", [20, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("is_constant", [False, True], ids=["same", "constant"])
@pytest.mark.parametrize("kind", ["fused", "listed"])
def test_ranks_that_choose_other_experts_take_the_steps_of_one(pool, kind, is_constant, stage, bucket):
    """A hang: a rank exchanges what another does not, or earlier. Other weights: a gradient is lost or mistaken."""
    weights, norms = plainly(kind, is_constant, 2)
    arguments = {"kind": kind, "is_constant": is_constant, "stage": stage, "bucket": bucket}
    for found, found_norms in pool(2).run(weights_after, **arguments, timeout_s=15):
        assert found_norms == pytest.approx(norms, rel=1e-5)
        for ours, theirs in zip(found, weights, strict=True):
            torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-5, atol=1e-6)


def save_family(mesh: Any, folder: str, family: str) -> None:
    """Save a model whose every tensor matters, with a tokenizer."""
    from trainer.model.tiny import build_tokenizer

    make_base(mesh, folder, family)
    build_tokenizer().save_pretrained(f"{folder}/base")


def trained_apart(mesh: Any, workspace: str, run_dir: str, variants: list[list[str]]) -> Any:
    """Take two steps. Where a model has experts without weights the tokens of the second rank all go to them, and no
    others do."""
    results = []
    for index, overrides in enumerate(variants):
        with session_of(config_of(workspace, f"{run_dir}/{index}", *overrides)) as session:
            for name, bias in session.policy.module.named_buffers():
                if name.endswith("e_score_correction_bias"):
                    bias[NUM_EXPERTS:] = 1e3 if mesh.rank else -1e3
            results.append(take_steps(session, 2))
    return results


def assert_steps_are_those_of_the_first(
    ranks: Any, workspace: Any, tmp_path: Any, variants: list[Any]
) -> None:
    arguments = {"workspace": workspace, "run_dir": str(tmp_path), "timeout_s": 100}
    first, *others = ranks.run(trained_apart, **arguments, variants=variants)[0]
    for other in others:
        assert_close(other, first, FP32, FP32 * 10)


@pytest.mark.parametrize("tuned", [[], LORA, pytest.param(LORA[:2], marks=pytest.mark.slow)])
def test_a_rank_without_a_token_for_an_expert_with_weights_keeps_no_rank_waiting(
    pool, workspace, tmp_path, tuned
):
    """LongCat-Flash against a stage whose gradients are exchanged by code of ours: 2, and 1 of what little trains."""
    pool(1).run(save_family, folder=str(tmp_path), family="LongCat-Flash")
    words = [*tuned, f"model.path={tmp_path}/base"]
    stages = [1, 3] if tuned else [2, 1, 3]
    variants = [[*words, f"zero.stage={stage}"] for stage in stages]
    variants.append([*words, "zero.stage=3", "model.checkpoint_layers=0"])
    assert_steps_are_those_of_the_first(pool(2), workspace, tmp_path, variants)


@pytest.mark.parametrize(("family", "target"), [("Qwen3-MoE", "experts"), ("JetMoE", "all_linear")])
def test_layers_gathered_whole_train_though_what_they_are_given_wants_no_gradient(
    pool, workspace, tmp_path, family, target
):
    """The first layer of an adapter. DeepSpeed would reduce gradients before they are there, and end with an error."""
    pool(1).run(save_family, folder=str(tmp_path), family=family)
    words = [*LORA[:2], f"tune.target=[{target}]", f"model.path={tmp_path}/base", "model.checkpoint_layers=0"]
    variants = [[*words, f"zero.stage={stage}"] for stage in (1, 3)]
    assert_steps_are_those_of_the_first(pool(1), workspace, tmp_path, variants)
