"""One optimizer step: what is summed, what it is divided by, and the layouts of its inputs."""

import math

import numpy as np
import pytest
import torch

from trainer.data.pack.collate import BaseRows, collate
from trainer.data.types import Pack
from trainer.dist.mesh import Mesh
from trainer.engine.inputs import labels_of, model_inputs
from trainer.mix.loader import StepBatch
from trainer.mix.plan import Cursor
from trainer.run.step import StepResult, add_by_source, train_step
from trainer.teacher.base_model import CachedBase

CPU = torch.device("cpu")
ALONE = Mesh(0, 0, 1, CPU)


def micro_of(lengths_by_row, sources, seq_len=8):
    packs = []
    for lengths in lengths_by_row:
        total = sum(lengths)
        packs.append(Pack(np.arange(1, total + 1), np.ones(total, dtype=bool), list(lengths)))
    return collate(packs, sources, seq_len, 0)


def batch_of(*micros):
    by_source = {"a": 0, "b": 0}
    for micro in micros:
        for source, count in zip(micro.source_B, micro.num_targets_B, strict=True):
            by_source["ab"[source]] += count
    total = sum(by_source.values())
    return StepBatch(0, list(micros), total, by_source, by_source, 99, "digest", 0.0, Cursor())


class CountingEngine:
    """Loss 2 at every supervised token; remembers what it was asked to do."""

    def __init__(self, norm=0.5, applied=True):
        self.calls = []
        self._step = norm, applied

    def forward(self, labels, **inputs):
        self.calls.append("forward")
        nll = torch.where(labels.reshape(-1) != -100, 2.0, 0.0)
        return nll.sum(), nll

    def backward(self, loss, is_last):
        self.calls.append(("backward", float(loss), is_last))

    def step(self):
        self.calls.append("step")
        return self._step


def test_a_step_divides_once_by_the_targets_of_all_micro_batches_and_updates_once():
    first, second = micro_of([[8]], [0]), micro_of([[2]], [1])
    engine = CountingEngine()
    result = train_step(engine, batch_of(first, second), ["a", "b"], ALONE, False, False)
    assert engine.calls == [
        "forward",
        ("backward", pytest.approx(7 * 2 / 8), False),
        "forward",
        ("backward", pytest.approx(1 * 2 / 8), True),
        "step",
    ]
    assert result.loss == pytest.approx(2.0)
    assert result.loss_sums == {"a": 14.0, "b": 2.0} and result.num_targets == {"a": 7, "b": 1}
    assert result.sum_len_sq == 64 + 4
    assert result.is_sound and result.stop_votes == 0


class TwoRanks(Mesh):
    """Both ranks of two hold the same numbers."""

    def sum(self, values):
        return [2 * value for value in values]


def test_the_loss_is_scaled_for_deepspeeds_average_over_ranks_and_votes_are_counted():
    batch = batch_of(micro_of([[8]], [0]))
    batch.num_targets_global, batch.num_targets_by_source = 14, {"a": 14, "b": 0}
    engine = CountingEngine()
    result = train_step(engine, batch, ["a", "b"], TwoRanks(0, 0, 2, CPU), False, stop=True)
    assert engine.calls[1] == ("backward", pytest.approx(14 * 2 / 14), True)
    assert result.loss == pytest.approx(2.0) and result.stop_votes == 2


def test_a_step_without_any_target_is_no_division_by_zero():
    batch = batch_of(micro_of([[1, 1, 1]], [0]))
    assert batch.num_targets_global == 0
    result = train_step(CountingEngine(), batch, ["a", "b"], ALONE, False, False)
    assert result.loss == 0.0 and result.is_sound


@pytest.mark.parametrize(
    ("loss", "norm", "applied", "is_sound"),
    [
        (1.0, 1.0, True, True),
        (1.0, 1.0, False, False),
        (math.nan, 1.0, True, False),
        (math.inf, 1.0, True, False),
        (1.0, math.nan, True, False),
        (1.0, math.inf, True, False),
    ],
)
def test_a_step_is_sound_when_it_was_applied_with_finite_numbers(loss, norm, applied, is_sound):
    assert StepResult({"a": loss}, {"a": 1}, 1.0, norm, applied, 0).is_sound is is_sound


def test_losses_are_added_to_the_source_of_their_pack_in_double_precision():
    micro = micro_of([[8], [8], [8]], [1, 0, 1])
    sums = torch.zeros(3, dtype=torch.float64)
    add_by_source(sums, torch.arange(24, dtype=torch.float32), micro)
    assert sums.tolist() == [sum(range(8, 16)), sum(range(8)) + sum(range(16, 24)), 0]


def test_flash_attention_gets_one_row_with_boundaries_of_its_own():
    """Without explicit boundaries transformers looks for them with a synchronisation in every layer."""
    micro = micro_of([[3, 2], [8]], [0, 0])
    inputs = model_inputs(micro, CPU, flash=True)
    assert inputs["input_ids"].shape == inputs["position_ids"].shape == (1, 16)
    assert inputs["cu_seq_lens_q"] is inputs["cu_seq_lens_k"]
    assert inputs["cu_seq_lens_q"].dtype == torch.int32
    assert inputs["cu_seq_lens_q"].tolist() == [0, 3, 5, 8, 16]
    assert type(inputs["max_length_q"]) is int and inputs["max_length_q"] == inputs["max_length_k"] == 8
    assert "attention_mask" not in inputs


def test_sdpa_gets_rows_and_a_mask_of_blocks():
    micro = micro_of([[3, 2], [8]], [0, 0])
    inputs = model_inputs(micro, CPU, flash=False)
    assert inputs["input_ids"].shape == (2, 8)
    mask = inputs["attention_mask"]
    assert mask.shape == (2, 1, 8, 8)
    assert mask[0, 0].sum(-1).tolist() == [1, 2, 3, 1, 2, 1, 2, 3]
    assert "cu_seq_lens_q" not in inputs
    assert labels_of(micro, CPU).shape == (2, 8)


class DivergingEngine(CountingEngine):
    """Loss 2 at every supervised token and KL 5 at every row with a base."""

    def forward(self, labels, base=None, **inputs):
        loss, nll = super().forward(labels, **inputs)
        if base is None:
            return loss, nll
        kl = torch.full((len(base.rows_R),), 5.0)
        return loss + base.beta * kl.sum(), nll, kl


def test_the_divergence_is_in_the_loss_that_is_divided_once_but_not_in_the_cross_entropy():
    replayed, other = micro_of([[8], [8]], [0, 1]), micro_of([[2]], [0])
    rows = np.arange(8, 15)
    replayed.base = BaseRows(rows, np.zeros((7, 3), np.int32), np.full((7, 3), -1.5, np.float16))
    engine = DivergingEngine()
    result = train_step(
        engine, batch_of(replayed, other), ["a", "b"], ALONE, False, False, CachedBase(beta=0.5)
    )
    assert engine.calls[1] == ("backward", pytest.approx((14 * 2 + 0.5 * 7 * 5) / 15), False)
    assert engine.calls[3] == ("backward", pytest.approx(1 * 2 / 15), True)
    assert (result.kl_sum, result.num_kl_tokens, result.kl_cost) == (35.0, 7, 17.5)
    assert result.loss == pytest.approx(2.0) and result.total_loss == pytest.approx(2.0 + 17.5 / 15)


def test_what_the_loader_read_reaches_the_device_as_it_is():
    micro = micro_of([[8]], [0])
    assert CachedBase(0.5).top_tokens(None, micro, ALONE, False) is None
    micro.base = BaseRows(np.arange(2, 4), np.array([[1, 2], [3, 4]], np.int32), np.zeros((2, 2), np.float16))
    base = CachedBase(0.5).top_tokens(None, micro, ALONE, False)
    assert base.beta == 0.5 and base.ids_RK.tolist() == [[1, 2], [3, 4]]
    assert base.rows_R.tolist() == base.host_rows_R.tolist() == [2, 3]


def test_a_divergence_that_is_not_finite_is_not_sound():
    assert not StepResult({"a": 1.0}, {"a": 1}, 1.0, 1.0, True, 0, math.inf, 1, math.inf).is_sound
