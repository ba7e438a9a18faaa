"""Held-out packs over ranks: the same number of batches everywhere, every pack counted once."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.pack.refs import PackRef
from trainer.data.types import Pack, Unit
from trainer.dist.mesh import Axis, Mesh, alone
from trainer.engine.policy import Policy
from trainer.evaluate.held_out import HeldOut, held_out_pieces
from trainer.evaluate.held_out import held_out_losses as held_out_losses_of


class MemoryStore:
    """Pack k holds the token k + 1 four times; the last (k + 1) % 4 of them are supervised."""

    seq_len = 4
    unit = Unit.document

    def __init__(self, num_packs):
        self.num_packs = num_packs

    def pack(self, index):
        supervised = np.arange(4) >= 4 - (index + 1) % 4
        return Pack(np.full(4, index + 1, dtype=np.int64), supervised, [4])


def layout(num_packs, micro_batch_size=1, max_packs=64):
    names = [f"s{index}" for index in range(len(num_packs))]
    return HeldOut(names, [MemoryStore(n) for n in num_packs], max_packs, micro_batch_size, pad_id=0)


@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=4),
    st.integers(1, 8),
    st.integers(1, 5),
    st.integers(1, 12),
)
def test_ranks_run_the_same_batches_and_count_every_pack_once(num_packs, world_size, size, max_packs):
    """A rank with a batch less leaves the others in a collective for ever."""
    held_out = layout(num_packs, size, max_packs)
    per_rank = [held_out.batches(Axis(rank, world_size)) for rank in range(world_size)]
    assert len({len(batches) for batches in per_rank}) == 1
    assert all(len(batch) == size for batches in per_rank for batch in batches)
    counted = Counter(
        (ref.source, ref.pack)
        for batches in per_rank
        for batch in batches
        for ref in batch
        if ref.source >= 0
    )
    wanted = {(s, p) for s, count in enumerate(num_packs) for p in range(min(count, max_packs))}
    assert set(counted) == wanted and set(counted.values()) <= {1}
    fillers = sum(ref == PackRef(-1, 0, 0) for batches in per_rank for batch in batches for ref in batch)
    assert fillers < size * world_size


def held_out_losses(*arguments, **options):
    return {name: found.mean for name, found in held_out_pieces(*arguments, **options).items()}


class SummingEngine:
    """Answers every supervised position with the value of its label."""

    module = torch.nn.Identity()

    def __init__(self):
        self.num_calls = 0

    def evaluating(self):
        return torch.no_grad()

    def forward(self, ask, **inputs):
        self.num_calls += 1
        nll = ask.labels_N.clamp(min=0).float()
        return nll.sum(), nll


def summing():
    return Policy(SummingEngine(), alone(torch.device("cpu")), False)


class OneOfSeveral(Mesh):
    """A rank whose share is added up by the test."""

    def gather(self, value):
        return [value]


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_means_are_over_supervised_tokens_and_fillers_do_not_count(world_size, size):
    held_out = layout([0, 7, 4], size)
    totals = np.zeros(2)
    for rank in range(world_size):
        mesh = OneOfSeveral(rank, world_size, 0, Axis(rank, world_size), torch.device("cpu"))
        losses = held_out_losses(Policy(SummingEngine(), mesh, False), held_out)
        batches = held_out.batches(mesh.data)
        targets = sum((ref.pack + 1) % 4 for batch in batches for ref in batch if ref.source == 1)
        totals += [losses.get("s1", 0.0) * targets, targets]
    # Source s1: packs 0 to 6 with 1 2 3 0 1 2 3 targets of value 1 2 3 4 5 6 7.
    assert totals[0] == pytest.approx(1 * 1 + 2 * 2 + 3 * 3 + 1 * 5 + 2 * 6 + 3 * 7) and totals[1] == 12


def test_a_source_without_held_out_packs_has_no_loss_and_no_data_no_batches():
    assert set(held_out_losses(summing(), layout([0, 7]))) == {"s1"}
    policy = summing()
    assert held_out_losses(policy, layout([0, 0])) == {}
    assert policy.engine.num_calls == 0


def test_pieces_are_the_documents_of_packs_in_their_order():
    pieces = held_out_pieces(summing(), layout([0, 7], 3))["s1"]
    assert pieces.targets_P.tolist() == [1, 2, 3, 1, 2, 3]
    assert pieces.nll_P.tolist() == [1, 4, 9, 5, 12, 21]
    assert pieces.mean == pytest.approx(52 / 12)


def test_a_measurement_that_takes_long_says_how_far_it_is(monkeypatch, caplog):
    monkeypatch.setattr("trainer.metrics.long_work.EVERY_S", 0.0)
    caplog.set_level("INFO")
    held_out_pieces(summing(), layout([0, 7], 3))
    said = [record.getMessage() for record in caplog.records]
    assert [line.partition(":")[0] for line in said] == [f"Held-out loss, batch {n} of 3" for n in (1, 2, 3)]
    assert "left" in said[1] and "left" not in said[0]
    monkeypatch.setattr("trainer.metrics.long_work.EVERY_S", 60.0)
    caplog.clear()
    held_out_pieces(summing(), layout([0, 7], 3))
    assert not caplog.records


class PairStore(MemoryStore):
    """Pack k holds two pairs; the answers of pair p have p + 1 and p + 2 supervised tokens of the value k + 1."""

    seq_len = 16
    unit = Unit.pair

    def pack(self, index):
        supervised = np.concatenate([np.arange(4) >= 4 - count for count in (1, 2, 2, 3)])
        return Pack(np.full(16, index + 1, dtype=np.int64), supervised, [4] * 4, [2, 2])


def test_of_pairs_the_chosen_answers_are_the_loss_and_the_rejected_ones_stand_beside():
    held_out = HeldOut(["pairs"], [PairStore(3)], 64, 2, pad_id=0)
    found = held_out_losses_of(summing(), held_out)
    chosen, rejected = found.pieces["pairs"], found.rejected["pairs"]
    assert chosen.targets_P.tolist() == [1, 2] * 3 and rejected.targets_P.tolist() == [2, 3] * 3
    assert chosen.nll_P.tolist() == [1.0, 2.0, 2.0, 4.0, 3.0, 6.0]
    assert rejected.nll_P.tolist() == [2.0, 3.0, 4.0, 6.0, 6.0, 9.0]


class LabelledStore(PairStore):
    """The same answers, each by itself; every second one is undesirable."""

    unit = Unit.answer

    def pack(self, index):
        pack = super().pack(index)
        labels = np.repeat(np.array([1, -1, 1, -1], dtype=np.float32), 4) * pack.supervised
        return Pack(pack.tokens, pack.supervised, pack.lengths, [1] * 4, {"label": labels})


def test_of_labelled_answers_the_desirable_ones_are_the_loss():
    found = held_out_losses_of(summing(), HeldOut(["answers"], [LabelledStore(2)], 64, 1, pad_id=0))
    assert found.pieces["answers"].targets_P.tolist() == [1, 2] * 2 and not found.rejected
    assert found.pieces["answers"].nll_P.tolist() == [1.0, 2.0, 2.0, 4.0]
