"""Rungs 3, 7 and 8: documents in a pack are alone, the probe sees when not, and no held-out pack is lost."""

from __future__ import annotations

from typing import Any

import pytest

from tests.dist.session import config_of, held_out_losses, loader_of, session_of
from trainer.errors import SelfCheckError

FP32 = 1e-6
PACKED = 1e-5
"""Relative to the largest value: attention adds up over a longer row, with zeros in other places."""


def compare_packed(mesh: Any, workspace: str, run_dir: str) -> dict[str, Any]:
    """Compare logits and losses of documents in packs with the same documents alone."""
    import numpy as np
    import torch

    from trainer.data.pack.collate import collate
    from trainer.data.types import Pack

    def run(pack: Pack, seq_len: int) -> tuple[Any, Any]:
        micro = collate([pack], [0], seq_len, 0)
        with session.policy.evaluating():
            return session.policy.logits(micro), session.policy.nll(micro).nll_N

    worst = {"logits": 0.0, "loss": 0.0, "documents": 0, "packs": 0}
    with session_of(config_of(workspace, run_dir)) as session:
        for store in session.stores.values():
            for index in range(min(store.train.num_packs, 6)):
                pack = store.train.pack(index)
                packed_logits, packed_nll = run(pack, store.train.seq_len)
                start = 0
                for length in pack.lengths:
                    part = slice(start, start + length)
                    alone = Pack(np.asarray(pack.tokens[part]), pack.supervised[part], [length])
                    logits, nll_N = run(alone, length)
                    scale = float(logits.abs().max())
                    moved = float((packed_logits[part] - logits).abs().max()) / scale
                    worst["logits"] = max(worst["logits"], moved)
                    moved = float((packed_nll[part] - nll_N).abs().max()) / max(float(nll_N.max()), 1.0)
                    worst["loss"] = max(worst["loss"], moved)
                    worst["documents"] += 1
                    start += length
                assert torch.all(packed_nll[start:] == 0), "padding carries loss"
                worst["packs"] += 1
    return worst


def test_documents_in_a_pack_are_computed_as_if_alone(pool, workspace, tmp_path):
    """A failure: the mask lets documents see each other, positions inside a document are not consecutive, or
    labels are predicted across a boundary. (That positions start at 0 is seen by no rotary embedding: it
    depends on distances only. tests/unit/data/test_collate.py checks it.)
    """
    worst = pool(1).run(compare_packed, workspace=workspace, run_dir=str(tmp_path))[0]
    print(worst)
    assert worst["documents"] > 1.5 * worst["packs"] > 12
    assert worst["logits"] <= PACKED and worst["loss"] <= PACKED


def probe(mesh: Any, workspace: str, run_dir: str) -> list[Any]:
    """Return what the probe says of the model, of a plain causal mask, and of a deaf model."""
    import torch

    from trainer.engine import policy
    from trainer.evaluate.proofs import isolation

    real = policy.model_inputs

    def plain_causal(*arguments: Any) -> dict[str, Any]:
        inputs = real(*arguments)
        mask = inputs["attention_mask"]
        return inputs | {"attention_mask": torch.ones_like(mask).tril()}

    with session_of(config_of(workspace, run_dir, "zero.dtype=bf16", "zero.stage=3")) as session:
        arguments = (session.policy, 264, session.config.data.seq_len)
        answers: list[Any] = [isolation.check_isolation(*arguments).moved]
        policy.model_inputs = plain_causal
        try:
            with pytest.raises(SelfCheckError) as caught:
                isolation.check_isolation(*arguments)
        finally:
            policy.model_inputs = real
        answers.append(str(caught.value))
        session.policy.engine.forward = lambda ask, **inputs: torch.ones(len(ask.keep_K), 264)
        with pytest.raises(SelfCheckError) as caught:
            isolation.check_isolation(*arguments)
        return [*answers, str(caught.value)]


def test_the_isolation_probe_passes_and_notices_a_plain_causal_mask(pool, workspace, tmp_path):
    """First number too large: packed documents see each other in this build. No error for the broken mask:
    the probe would not notice it either.
    """
    for moved, leaking, deaf in pool(2).run(probe, workspace=workspace, run_dir=str(tmp_path)):
        assert moved <= 2.0**-9
        assert "Documents in one pack see each other" in leaking
        assert "its own logits did not move" in deaf


def held_out(mesh: Any, workspace: str, run_dir: str, micro_batch_sizes: list[int]) -> Any:
    """Return (losses, batches run, packs held out) for each micro-batch size."""
    found = []
    for size in micro_batch_sizes:
        overrides = ["zero.stage=3", f"evaluate.micro_batch_size={size}"]
        with session_of(config_of(workspace, f"{run_dir}/{size}", *overrides)) as session:
            calls: list[int] = []
            layout = session.held_out()
            losses = held_out_losses(session.policy, layout, on_batch=lambda calls=calls: calls.append(1))
            packs = [store.num_packs for store in layout.stores]
        found.append([losses, len(calls), packs])
    return found


def test_held_out_loss_of_an_uneven_number_of_packs_is_the_same_on_one_and_two_ranks(
    pool, workspace, tmp_path
):
    """A difference: the packs that fill up a rank's last batch are counted, or some are left out. A hang:
    ranks run different numbers of batches.
    """
    arguments = {"workspace": workspace, "run_dir": str(tmp_path), "micro_batch_sizes": [1, 3]}
    one = pool(1).run(held_out, **arguments)[0]
    two = pool(2).run(held_out, **arguments)
    num_packs = sum(one[0][2])
    assert num_packs % 2 == 1, f"{num_packs} held-out packs are no uneven number: change the documents"
    assert [result[1] for result in two[0]] == [result[1] for result in two[1]]
    assert one[0][1] == num_packs and two[0][0][1] == (num_packs + 1) // 2
    for result in (one[1], *two[0], *two[1]):
        assert set(result[0]) == {"chat", "text"}
        for name, loss in result[0].items():
            assert loss == pytest.approx(one[0][0][name], rel=FP32)


def take_targets(mesh: Any, workspace: str, run_dir: str) -> Any:
    """Return each step's digest, counts over all ranks, and this rank's own targets."""
    with session_of(config_of(workspace, run_dir)) as session:
        loader = loader_of(session)
        found = []
        for step in range(4):
            batch = loader.take(step)
            mine = sum(micro.num_targets for micro in batch.micro_batches)
            found.append([batch.digest, batch.num_targets_global, batch.num_targets_by_source, mine])
        loader.close()
        return found


def test_targets_counted_from_the_plan_are_those_the_ranks_see(pool, workspace, tmp_path):
    """A difference: the loss is divided by a number of tokens that were not trained on."""
    arguments = {"workspace": workspace, "run_dir": str(tmp_path)}
    one = pool(1).run(take_targets, **arguments)[0]
    two = pool(2).run(take_targets, **arguments)
    for alone, first, second in zip(one, *two, strict=True):
        assert alone[:3] == first[:3] == second[:3]
        assert alone[1] == alone[3] == first[3] + second[3] == sum(alone[2].values())
