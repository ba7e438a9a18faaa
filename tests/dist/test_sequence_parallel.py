"""Ranks that share the tokens of each pack: the steps, losses and checkpoints of a run in which nobody shares."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.dist.session import config_of, held_out_losses, session_of, take_steps
from tests.dist.test_resize import assert_same, go_on
from tests.dist.test_zero import FP32, assert_close

NUM_STEPS = 4
SHARED = "train.sequence_parallel=2"
LORA = ["tune.method=lora", "tune.r=4"]


def exchanges(mesh: Any) -> list[float]:
    """Return how far attention through the exchange is from attention to the whole, and its gradients likewise."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    from trainer.dist.mesh import with_sequence
    from trainer.model.around_attention import ARGUMENT, told
    from trainer.model.masks import block_mask
    from trainer.model.token_slices import TokenSlices

    sharing = with_sequence(mesh, 2, timedelta(seconds=60))
    slices = TokenSlices(sharing.sequence, sharing.sequence_group)
    apart = []
    for heads, of_keys in ((4, 4), (4, 2), (6, 3), (2, 1)):
        torch.manual_seed(0)
        shapes = [(2, heads, 12, 8), (2, of_keys, 12, 8), (2, of_keys, 12, 6)]
        wholes = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
        mask = block_mask(torch.tensor([[0] * 5 + [1] * 7, [2] * 11 + [3]]))
        layer: Any = torch.nn.Module()
        layer.num_key_value_groups, layer.is_causal = heads // of_keys, True
        whole, _ = sdpa_attention_forward(layer, *wholes, mask)
        weight = torch.randn_like(whole)
        expected = torch.autograd.grad((whole * weight).sum(), wholes)
        owned = [slices.own(w, 2).detach().requires_grad_() for w in wholes]
        own, _ = told(sdpa_attention_forward)(layer, *owned, mask, **{ARGUMENT: slices})
        found = torch.autograd.grad((own * slices.own(weight)).sum(), owned)
        apart.append(float((own - slices.own(whole)).abs().max()))
        apart += [float((f - slices.own(e, 2)).abs().max()) for f, e in zip(found, expected, strict=True)]
    return apart


def test_attention_through_the_exchange_is_attention_to_the_whole_pack(pool):
    """Values wrong: slices or heads come in another order. Gradients alone: the way back is not the way there."""
    for apart in pool(2).run(exchanges):
        assert len(apart) == 16 and max(apart) < 1e-12, apart


def trained(mesh: Any, workspace: str, run_dir: str, variants: list[list[str]]) -> Any:
    """Return the steps of each variant, and its held-out losses after them."""
    results = []
    for index, overrides in enumerate(variants):
        with session_of(config_of(workspace, f"{run_dir}/{index}", *overrides)) as session:
            sharing = session.config.train.sequence_parallel
            assert (session.mesh.data.size, session.mesh.sequence.size) == (
                mesh.num_ranks // sharing,
                sharing,
            )
            steps = take_steps(session, NUM_STEPS)
            results.append([steps, held_out_losses(session.policy, session.held_out())])
    return results


EVERY = [["zero.stage=2"], ["zero.stage=3", "model.checkpoint_layers=-1"], [*LORA, "zero.stage=1"]]
LATER = [
    *([f"zero.stage={stage}"] for stage in (0, 1)),
    *([*LORA, f"zero.stage={stage}"] for stage in (0, 2, 3)),
    ["zero.stage=2", "train.micro_batch_size=2", "model.checkpoint_layers=1"],
    ["zero.stage=3", "model.path={workspace}/tied"],
]


@pytest.mark.parametrize("variants", [EVERY, pytest.param(LATER, marks=pytest.mark.slow)])
def test_two_ranks_that_share_packs_take_the_steps_of_one(pool, workspace, variants, tmp_path):
    """Losses wrong from the first step: a rank sees part of a pack, or a label is lost between slices. The norm alone:
    gradients are scaled for ranks that see different packs. Held-out losses alone: a rank's part is taken for all.
    """
    words = [[word.format(workspace=workspace) for word in variant] for variant in variants]
    alone = pool(1).run(trained, workspace=workspace, run_dir=str(tmp_path / "one"), variants=words)[0]
    shared = [[*variant, SHARED] for variant in words]
    results = pool(2).run(trained, workspace=workspace, run_dir=str(tmp_path / "two"), variants=shared)
    for (steps, held_out), (expected, measured) in zip(results[0], alone, strict=True):
        assert_close(steps, expected, FP32, FP32)
        assert held_out == pytest.approx(measured, rel=FP32)
    assert results[1] == results[0], "ranks report different numbers"


def kept(mesh: Any, workspace: str, run_dir: str, words: list[str]) -> int:
    """Return the bytes that a forward pass of a pack keeps for the one back, beside weights."""
    from tests.dist.session import loader_of

    with session_of(config_of(workspace, run_dir, "model.checkpoint_layers=0", *words)) as session:
        loader = loader_of(session)
        micro = loader.read(0).micro_batches[0]
        loader.close()
        weights = {p.untyped_storage().data_ptr() for p in session.policy.module.parameters()}
        found: dict[int, Any] = {}

        def keep(tensor: Any) -> Any:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                found[storage.data_ptr()] = storage  # held, so that its place is not given out again
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            session.policy.nll(micro)
        return sum(storage.nbytes() for storage in found.values())


def test_a_rank_keeps_its_part_of_the_activations(pool, workspace, tmp_path):
    """What it is for. More than half by the mask alone, which is that of the whole pack."""
    (alone,) = pool(1).run(kept, workspace=workspace, run_dir=str(tmp_path / "one"), words=LORA)
    for shared in pool(2).run(
        kept, workspace=workspace, run_dir=str(tmp_path / "two"), words=[*LORA, SHARED]
    ):
        assert 0.4 * alone < shared < 0.6 * alone, (alone, shared)


def counted(mesh: Any, workspace: str, run_dir: str, words: list[str]) -> dict[str, Any]:
    """Return what a step says that it has seen."""
    from tests.dist.session import loader_of
    from trainer.objective.causal_lm.cross_entropy import CausalLMObjective
    from trainer.run.step import train_step

    with session_of(config_of(workspace, run_dir, *words)) as session:
        loader = loader_of(session)
        objective, batch = CausalLMObjective(loader.names), loader.read(0)
        loader.close()
        result = train_step(session.policy, objective, batch, stop=lambda: mesh.is_first)
    counts = ("num_targets", "sum_len_sq", "num_tokens", "num_padding", "stop_votes")
    return {"digest": batch.digest, "sums": result.sums} | {name: getattr(result, name) for name in counts}


def test_a_step_of_shared_packs_counts_every_token_once(pool, workspace, tmp_path):
    """A sum that is twice as large: every rank of a group adds what all of them have."""
    one = pool(1).run(counted, workspace=workspace, run_dir=str(tmp_path / "one"), words=[])[0]
    for two in pool(2).run(counted, workspace=workspace, run_dir=str(tmp_path / "two"), words=[SHARED]):
        assert two.pop("sums") == pytest.approx(one["sums"], rel=FP32)
        assert two == {name: value for name, value in one.items() if name != "sums"}


@pytest.mark.slow
def test_two_groups_of_ranks_that_share_packs_take_the_same_steps(pool, workspace, tmp_path):
    """A failure here alone: groups see the same packs, or exchange between them. Beside four ranks that do not share:
    ZeRO-3's norm, a sum in float32, differs by 1.1e-6 between one rank and four.
    """
    variants = [["zero.stage=1"], ["zero.stage=2"], ["zero.stage=3"], [*LORA, "zero.stage=1"]]
    both = [*variants, *([*words, SHARED] for words in variants)]
    results = pool(4).run(trained, workspace=workspace, run_dir=str(tmp_path), variants=both)
    alone, shared = results[0][: len(variants)], results[0][len(variants) :]
    for (steps, held_out), (expected, measured) in zip(shared, alone, strict=True):
        assert_close(steps, expected, FP32, FP32)
        assert held_out == pytest.approx(measured, rel=FP32)
    assert all(result == results[0] for result in results), "ranks report different numbers"


def flash_of_tests(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
    """Attend as flash attention does: no mask, but where each document of all packs begins and ends."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    from trainer.model.masks import block_mask

    ends = options["cu_seq_lens_q"]
    assert mask is None and int(ends[-1]) == query.shape[2] and query.shape[0] == 1
    segments = torch.repeat_interleave(torch.arange(len(ends) - 1), ends.diff())
    return sdpa_attention_forward(
        module, query, key, value, block_mask(segments[None]), scaling=options["scaling"]
    )


def told_by_boundaries(mesh: Any, workspace: str, run_dir: str) -> list[float]:
    """Return how far loss and gradients are from those of SDPA where attention is told of boundaries."""
    from dataclasses import replace

    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from tests.dist.session import loader_of
    from trainer.evaluate.proofs.gradient import _ours
    from trainer.model.around_attention import let_attention_be_told

    name = "flash_of_tests"
    ALL_ATTENTION_FUNCTIONS.register(name, flash_of_tests)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, flash_attention_mask)
    let_attention_be_told(name, "train.sequence_parallel", "1", "more")
    with session_of(config_of(workspace, run_dir, SHARED, "train.micro_batch_size=4")) as session:
        loader = loader_of(session)
        (micro,) = loader.read(0).micro_batches
        loader.close()
        assert len(micro.cu_seq_lens) > 6
        masked = _ours(session.policy, micro)[0]
        held = session.policy.evaluating
        with held():
            nll_N = session.policy.nll(micro).nll_N
        session.loaded.model.config._attn_implementation = name
        flash = replace(session.policy, is_flash=True)
        found = _ours(flash, micro)[0]
        with held():
            apart = [float((flash.nll(micro).nll_N - nll_N).abs().max())]
    return [
        *apart,
        abs(found.loss - masked.loss) / masked.loss,
        *(float((found.parameters[name] - g).norm() / g.norm()) for name, g in masked.parameters.items()),
    ]


def test_boundaries_of_documents_are_those_of_the_whole_pack(pool, workspace, tmp_path):
    """Flash attention's layout: all packs in one row, which ranks cut elsewhere than between packs."""
    for apart in pool(2).run(told_by_boundaries, workspace=workspace, run_dir=str(tmp_path)):
        assert len(apart) > 8 and max(apart) < 1e-5, apart


@pytest.mark.slow
@pytest.mark.parametrize("own", [["zero.stage=2"], [*LORA, "zero.stage=1"]])
def test_a_run_that_is_shared_goes_on_unshared_and_the_other_way_round(pool, workspace, tmp_path, own):
    """Whole runs, with their proofs and the comparison with the base. Digests differ: ranks draw other packs. Of what
    is compared, numbers alone: ranks that have the same say it twice.
    """
    words = ["evaluate.forgetting=true", *own]
    whole, first = tmp_path / "whole", tmp_path / "shared"
    run = {"workspace": workspace, "start": None}
    pool(1).run(go_on, **run, run_dir=str(whole), overrides=words)
    pool(2).run(go_on, **run, run_dir=str(first), overrides=[*words, SHARED])
    assert_same(whole, first, 0, FP32)
    assert numbers(compared(first)) == pytest.approx(numbers(compared(whole)), rel=1e-4, abs=1e-6)
    for num_ranks, leg, step in ((1, [], 2), (2, [SHARED, "zero.stage=3"], 4)):
        before, first = first, tmp_path / f"from-{step}"
        start = str(before / "checkpoints" / f"step-{step:08d}")
        pool(num_ranks).run(
            go_on, workspace=workspace, run_dir=str(first), start=start, overrides=[*words, *leg]
        )
        assert_same(whole, first, step, FP32)


def compared(run_dir: Path) -> Any:
    """Return what a run says of itself beside its base."""
    return json.loads((run_dir / "forgetting.json").read_text())


def numbers(value: Any) -> list[float]:
    """Return every number in what a file holds, in its order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for inner in value for number in numbers(inner)]
    return [float(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []
