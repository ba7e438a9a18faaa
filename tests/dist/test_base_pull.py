"""The decay towards the base at every ZeRO stage: the steps of plain torch, resumed to the bit, by any ranks."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.dist.session import config_of, loader_of, session_of, take_steps
from tests.dist.test_resize import BF16, assert_same, chain
from tests.dist.test_resize import FP32 as MOVED
from tests.dist.test_resume import assert_bitwise, losses, train_twice
from tests.dist.test_zero import FP32, NUM_STEPS, assert_close, cosine, documents_of
from trainer.checkpoint.layout import step_dir
from trainer.checkpoint.manifest import read_manifest
from trainer.checkpoint.shard_file import WEIGHT
from trainer.checkpoint.shards import open_shards

DECAY = 60.0
"""With a peak rate of 2e-3 an eighth of the way back in a step: more than all rounding by far."""
PULL = [f"optim.base_decay={DECAY:g}"]


def hand_made(workspace: str, documents: dict[str, Any]) -> list[dict[str, float]]:
    """Take steps of AdamW with the pull after each, written out in float64; nothing of ours but the batches."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(Path(workspace) / "model", dtype=torch.float64)
    named = dict(model.named_parameters())
    starts = {name: p.detach().clone() for name, p in named.items()}
    first = {name: torch.zeros_like(p) for name, p in named.items()}
    second = {name: torch.zeros_like(p) for name, p in named.items()}
    records = []
    for step in range(NUM_STEPS):
        packs = documents[str(step)]
        total = sum(sum(label != -100 for label in labels) for _, labels in packs)
        loss = torch.zeros((), dtype=torch.float64)
        for tokens, labels in packs:
            logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
            loss = (
                loss
                + torch.nn.functional.cross_entropy(logits, torch.tensor(labels), reduction="sum") / total
            )
        model.zero_grad()
        loss.backward()
        norm = torch.stack([p.grad.square().sum() for p in named.values()]).sum().sqrt()
        lr = 2e-3 * ((step + 1) / 2 if step < 2 else cosine((step - 2) / (NUM_STEPS - 2), 0.1))
        with torch.no_grad():
            for name, weight in named.items():
                gradient = weight.grad / max(1.0, float(norm) + 1e-6)
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.95 * second[name] + 0.05 * gradient.square()
                mean, square = first[name] / (1 - 0.9 ** (step + 1)), second[name] / (1 - 0.95 ** (step + 1))
                decay = 0.0 if "norm" in name or "embed_tokens" in name else 0.1
                stepped = (1 - lr * decay) * weight - lr * mean / (square.sqrt() + 1e-8)
                weight.copy_(stepped - lr * DECAY * (stepped - starts[name]))
        records.append({"loss": float(loss), "grad_norm": float(norm)})
    return records


def reference(mesh: Any, workspace: str, run_dir: str) -> Any:
    with session_of(config_of(workspace, run_dir)) as session:
        documents = documents_of(session, NUM_STEPS)
    return hand_made(workspace, documents)


def trained(mesh: Any, workspace: str, run_dir: str, variants: list[list[str]]) -> Any:
    """Take steps with the pull that a run's own words ask for."""
    found = []
    for index, words in enumerate(variants):
        with session_of(config_of(workspace, f"{run_dir}/{index}", *PULL, *words)) as session:
            found.append(take_steps(session, NUM_STEPS))
    return found


@pytest.fixture(scope="module")
def expected(pool: Any, workspace: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    run_dir = str(tmp_path_factory.mktemp("reference"))
    return pool(1).run(reference, workspace=workspace, run_dir=run_dir)[0]


@pytest.mark.parametrize("num_ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_every_zero_stage_takes_the_steps_of_a_hand_made_pull(pool, workspace, expected, num_ranks, tmp_path):
    """Steps as without it: the pull is not made there. Others: the wrong rate, a start taken later, moments moved."""
    variants = [[f"zero.stage={stage}"] for stage in range(4)]
    records = pool(num_ranks).run(trained, workspace=workspace, run_dir=str(tmp_path), variants=variants)[0]
    for stage, record in enumerate(records):
        print(f"stage {stage}, {num_ranks} rank(s)")
        assert_close(record, expected, FP32, 2 * FP32)


def masters(session: Any) -> dict[str, torch.Tensor]:
    """Return all master weights, whole, by name. Collective: every rank."""
    held = session.policy.engine.held()
    own = [(f.name, f.begin, f.values.detach().float().tolist()) for f in held.fragments if f.kind == WEIGHT]
    found: dict[str, dict[int, list[float]]] = {}
    for fragments in session.mesh.gather(own):
        for name, begin, values in fragments:
            found.setdefault(name, {})[begin] = values
    return {
        name: torch.tensor([value for begin in sorted(parts) for value in parts[begin]])
        for name, parts in found.items()
    }


def step_without_gradient(mesh: Any, workspace: str, run_dir: str, variants: list[list[str]]) -> Any:
    """Train, then take a step whose gradient is zero; return how far each master is from where it must be.

    With betas 0 Adam leaves such weights where they are, so that the step is the pull and nothing else.
    """
    from trainer.objective.causal_lm.cross_entropy import CausalLMObjective
    from trainer.run.step import train_step

    class Silent(CausalLMObjective):
        def terms(self, *arguments: Any) -> Any:
            parts = super().terms(*arguments)
            return [dataclasses.replace(part, loss_sum=part.loss_sum * 0) for part in parts]

    words = [*PULL, "optim.betas=[0,0]", "optim.weight_decay=0", "optim.lr=1e-3"]
    found = []
    for index, own in enumerate(variants):
        own = [word.replace("{workspace}", workspace) for word in own]
        with session_of(config_of(workspace, f"{run_dir}/{index}", *words, *own)) as session:
            start = masters(session)
            take_steps(session, 3)
            before = masters(session)
            session.policy.engine.set_lr(1e-3)
            loader = loader_of(session)
            assert train_step(
                session.policy, Silent(loader.names), loader.read(3), stop=lambda: False
            ).is_applied
            loader.close()
            after = masters(session)
        moved = {name: float((before[name] - start[name]).abs().max()) for name in start}
        must = {name: before[name].double() - 0.06 * (before[name] - start[name]).double() for name in start}
        apart = max(float((after[name] - must[name]).abs().max()) for name in start)
        pulled = max(float((after[name] - before[name]).abs().max()) for name in start)
        zeros = sum(not start[name].any() for name in start)
        found.append({"apart": apart, "pulled": pulled, "least": min(moved.values()), "zeros": zeros})
    return found


LORA = ["tune.method=lora", "tune.r=4"]
OFFLOADED = ["zero.dtype=bf16", "zero.offload_optimizer=cpu"]
STAGE_0 = ["zero.dtype=bf16", "zero.stage=0", "train.micro_batch_size=4"]
PATHS = [
    ["zero.dtype=bf16", "zero.stage=1"],
    ["zero.dtype=bf16", "zero.stage=2"],
    ["zero.dtype=bf16", "zero.stage=3"],
    [*OFFLOADED, "zero.stage=1"],
    [*OFFLOADED, "zero.stage=2"],
    [*OFFLOADED, "zero.stage=3", "zero.offload_param=cpu"],
    ["zero.stage=2", "zero.extra={zero_optimization: {allgather_partitions: true}}"],
    ["zero.stage=3", "zero.sub_group_size=1000"],
    [*LORA, "zero.dtype=bf16", "zero.stage=1"],
    [*LORA, "zero.stage=2"],
    [*LORA, "zero.dtype=bf16", "zero.stage=3"],
    ["model.path={workspace}/tied", "zero.stage=3"],
]
"""Each has a step of its own, in DeepSpeed or here."""


@pytest.mark.parametrize(
    ("num_ranks", "paths"),
    [
        (2, [PATHS[1], PATHS[10]]),
        pytest.param(2, PATHS, marks=pytest.mark.slow),
        pytest.param(1, [STAGE_0, *PATHS], marks=pytest.mark.slow),
    ],
)
def test_a_step_without_gradient_is_the_pull_of_the_masters_on_every_path(
    pool, workspace, tmp_path, num_ranks, paths
):
    """In bf16 a pull of the weights themselves, or from a rounded master, would be off by some thousandths."""
    words = {"workspace": workspace, "run_dir": str(tmp_path), "variants": paths}
    for path, found in zip(paths, pool(num_ranks).run(step_without_gradient, **words)[0], strict=True):
        print(path, found)
        assert found["least"] > 0 and found["pulled"] > 1e-5, path
        assert found["apart"] <= 2.0**-22, path  # of weights below 2, rounded twice in float32
        assert (found["zeros"] > 0) == ("tune.method=lora" in path), "what B began as, and the base has none"


@pytest.mark.slow
def test_a_run_with_a_pull_resumes_to_the_bit(pool, workspace, tmp_path):
    """Other bits: what it is pulled to is the checkpoint's weights."""
    pool(2).run(train_twice, workspace=workspace, folder=str(tmp_path), stages=[3], overrides=PULL)
    assert_bitwise(tmp_path / "whole-3", tmp_path / "resumed-3")
    assert read_manifest(step_dir(tmp_path / "whole-3", 3)).facts["base"] is not None


@pytest.mark.slow
def test_a_run_with_a_pull_is_another_one_and_refuses_another_base(pool, workspace, tmp_path):
    """Nothing but the pull asks for the base's digest here: a run without a comparison took none."""
    words = [*PULL, "evaluate.forgetting=false"]
    pool(2).run(train_twice, workspace=workspace, folder=str(tmp_path), stages=[1], overrides=words)
    assert_bitwise(tmp_path / "whole-1", tmp_path / "resumed-1")
    plain = tmp_path / "plain"
    pool(2).run(train_twice, workspace=workspace, folder=str(plain), stages=[1], overrides=words[1:])
    assert losses(plain / "whole-1")[6] != losses(tmp_path / "whole-1")[6]
    assert read_manifest(step_dir(plain / "whole-1", 3)).facts["base"] is None
    other = tmp_path / "other"
    shutil.copytree(Path(workspace) / "dropout", other)
    said = pool(2).run(resumed_with, workspace=workspace, folder=str(tmp_path), model=str(other))[0]
    assert said is not None and "base" in said, said


def resumed_with(mesh: Any, workspace: str, folder: str, model: str) -> str | None:
    """Change a weight of a base and go on with a run of it; return what was said."""
    import safetensors.torch

    from tests.dist.test_resume import config_for
    from trainer.errors import TrainerError
    from trainer.run import training

    if mesh.is_first:
        path = Path(model) / "model.safetensors"
        tensors = safetensors.torch.load_file(path)
        name = sorted(tensors)[0]
        tensors[name] = tensors[name] + 1
        safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    mesh.barrier()
    words = [*PULL, "evaluate.forgetting=false", f"model.path={model}"]
    try:
        training.run_training(config_for(workspace, Path(folder) / "whole-1", 1, words))
    except TrainerError as error:
        return str(error)
    return None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "words"),
    [(1, ["tune.method=lora"]), (3, ["tune.method=lora"]), (3, ["zero.offload_optimizer=cpu"])],
)
def test_adapters_and_what_is_offloaded_resume_to_the_bit(pool, workspace, tmp_path, stage, words):
    folder = str(tmp_path)
    pool(2).run(train_twice, workspace=workspace, folder=folder, stages=[stage], overrides=[*PULL, *words])
    assert_bitwise(tmp_path / f"whole-{stage}", tmp_path / f"resumed-{stage}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "words", "legs"),
    [
        (2, [], [(1, ["zero.stage=1"]), (3, ["zero.stage=3"])]),
        pytest.param(
            3,
            ["zero.dtype=bf16", "tune.method=lora"],
            [(1, ["zero.stage=1"]), (2, [])],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_other_ranks_pull_to_the_same_weights(pool, workspace, tmp_path, stage, words, legs):
    """Another loss after a move: ranks took what they hold in the new layout for what it began as."""
    chain(pool, workspace, tmp_path, legs, [f"zero.stage={stage}", *PULL, *words])
    allowed = BF16 if "zero.dtype=bf16" in words else MOVED
    for index in range(len(legs)):
        assert_same(tmp_path / "whole", tmp_path / f"leg-{index}", 2 * (index + 1), allowed)
    first = open_shards(step_dir(tmp_path / "whole", 2))
    assert first.shapes and json.dumps(sorted(first.kinds(next(iter(first.shapes))))) == json.dumps(
        ["exp_avg", "exp_avg_sq", "weight"]
    ), "the start is not in a checkpoint"
