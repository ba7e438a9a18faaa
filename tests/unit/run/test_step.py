"""One optimizer step: what is summed, what it is divided by, and the layouts of its inputs."""

import math

import numpy as np
import pytest
import torch

from trainer.data.pack.collate import collate
from trainer.data.types import Pack
from trainer.dist.mesh import Axis, Mesh, alone
from trainer.engine.model_inputs import labels_of, model_inputs
from trainer.engine.policy import Policy
from trainer.metrics.mean import Mean
from trainer.mix.loader import StepBatch
from trainer.mix.plan import Cursor
from trainer.objective.causal_lm.cross_entropy import CausalLMObjective
from trainer.objective.contract import Part, Sums
from trainer.run.step import Care, StepResult, train_step
from trainer.teacher.cached import CachedBase
from trainer.teacher.reference import BaseRows

CPU = torch.device("cpu")
ALONE = alone(CPU)


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

    module = torch.nn.Identity()

    def __init__(self, norm=0.5, applied=True):
        self.calls = []
        self._step = norm, applied

    def forward(self, ask, **inputs):
        self.calls.append("forward")
        nll = torch.where(ask.labels_N != -100, 2.0, 0.0)
        return nll.sum(), nll

    def backward(self, loss, is_last):
        self.calls.append(("backward", float(loss), is_last))

    def step(self, most_norm=math.inf):
        self.calls.append("step")
        return self._step


def take(engine, batch, mesh=ALONE, stop=False, teacher=None):
    return train_step(
        Policy(engine, mesh, False), CausalLMObjective(["a", "b"], teacher), batch, lambda: stop
    )


def test_a_step_divides_once_by_the_targets_of_all_micro_batches_and_updates_once():
    first, second = micro_of([[8]], [0]), micro_of([[2]], [1])
    engine = CountingEngine()
    result = take(engine, batch_of(first, second))
    assert engine.calls == [
        "forward",
        ("backward", pytest.approx(7 * 2 / 8), False),
        "forward",
        ("backward", pytest.approx(1 * 2 / 8), True),
        "step",
    ]
    assert result.loss == pytest.approx(2.0)
    assert result.sums == {"nll/a": 14.0, "nll/b": 2.0, "targets": 8, "targets/a": 7, "targets/b": 1}
    read = {mean.name: mean.of(result.sums) for mean in result.means}
    assert read == {"loss": 2.0, "loss/a": 2.0, "loss/b": 2.0} and result.num_targets == 8
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
    result = take(engine, batch, TwoRanks(0, 2, 0, Axis(0, 2), CPU), stop=True)
    assert engine.calls[1] == ("backward", pytest.approx(14 * 2 / 14), True)
    assert result.loss == pytest.approx(2.0) and result.stop_votes == 2


def test_a_step_without_any_target_is_no_division_by_zero():
    batch = batch_of(micro_of([[1, 1, 1]], [0]))
    assert batch.num_targets_global == 0
    result = take(CountingEngine(), batch)
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
    means = (Mean("loss", ("nll/a",), ("targets",)), Mean("other", ("c",), ("none",)))
    sums = {"nll/a": loss, "targets": 1.0, "c": math.nan, "none": 0.0}
    result = StepResult(sums, means, 1, 1.0, norm, applied, 0)
    assert result.is_sound is is_sound
    assert result.unsound == ([] if math.isfinite(loss) else ["loss"]), "what was not counted says nothing"


def test_losses_are_added_to_the_source_of_their_pack_in_double_precision():
    sums = Sums(["a", "b", "c"], CPU)
    sums.add_rows(["b", "a", "b"], torch.tensor([1.0, 2.0, 2.0**-40], dtype=torch.float64))
    sums.add("c", torch.tensor(0.5))
    sums.count("c", 2)
    assert sums.to_list() == [2.0, 1.0 + 2.0**-40, 2.5]


def test_a_signal_in_the_middle_of_a_step_is_heard_at_its_end_and_each_micro_batch_is_told():
    engine, told, asked = CountingEngine(), [], []

    def stop():
        asked.append(list(engine.calls))
        return True

    micros = [micro_of([[8]], [0]), micro_of([[2]], [1])]
    policy, objective = Policy(engine, ALONE, False), CausalLMObjective(["a", "b"], None)
    care = Care(lambda i: told.append((i, len(engine.calls))), lambda: len(asked) == 1)
    result = train_step(policy, objective, batch_of(*micros), stop, care)
    assert result.stop_votes == result.written_votes == 1 and told == [(0, 0), (1, 2)]
    assert len(asked) == 1 and asked[0][-1] == "step"


class TwoParts:
    """A loss of 3 a micro-batch over all targets, and of 8 over the packs of the step."""

    sum_names, means = (), (Mean("loss", (), ("targets",)),)

    def counts(self, batch):
        return {"targets": 6.0, "packs": 0.5}

    def begin(self, policy, batch):
        pass

    def terms(self, policy, micro, sums):
        return [Part(torch.tensor(3.0), "targets"), Part(torch.tensor(8.0), "packs")]


def test_every_part_of_a_loss_has_its_own_denominator_which_may_be_less_than_one():
    engine = CountingEngine()
    train_step(Policy(engine, ALONE, False), TwoParts(), batch_of(micro_of([[8]], [0])), lambda: False)
    assert engine.calls == [("backward", 3 / 6 + 8 / 0.5, True), "step"]


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


@pytest.mark.parametrize(
    ("flash", "expected"),
    [(True, [[0, 0, 0, 1, 1, 2, 2, 2, *[3] * 8]]), (False, [[0, 0, 0, 1, 1, 2, 2, 2], [3] * 8])],
)
def test_kernels_of_states_and_convolutions_are_told_the_document_of_each_token(flash, expected):
    micro = micro_of([[3, 2], [8]], [0, 0])
    assert "seq_idx" not in model_inputs(micro, CPU, flash)
    told = model_inputs(micro, CPU, flash, carries=True)["seq_idx"]
    assert told.dtype == torch.int32 and told.tolist() == expected


class DivergingEngine(CountingEngine):
    """Loss 2 at every supervised token and KL 5 at every row with a base."""

    def forward(self, ask, **inputs):
        loss, nll = super().forward(ask, **inputs)
        if ask.teacher is None:
            return loss, nll
        kl = torch.full((len(ask.teacher.rows_R),), 5.0)
        return loss + ask.teacher.beta * kl.sum(), nll, kl


def test_the_divergence_is_in_the_loss_that_is_divided_once_but_not_in_the_cross_entropy():
    replayed, other = micro_of([[8], [8]], [0, 1]), micro_of([[2]], [0])
    rows = np.arange(8, 15)
    replayed.attached = BaseRows(rows, np.zeros((7, 3), np.int32), np.full((7, 3), -1.5, np.float16))
    engine = DivergingEngine()
    result = take(engine, batch_of(replayed, other), teacher=CachedBase(0.5, None))
    assert engine.calls[1] == ("backward", pytest.approx((14 * 2 + 0.5 * 7 * 5) / 15), False)
    assert engine.calls[3] == ("backward", pytest.approx(1 * 2 / 15), True)
    assert [result.sums[name] for name in ("kl", "kl_tokens", "kl_cost")] == [35.0, 7, 17.5]
    read = {mean.name: mean.of(result.sums) for mean in result.means}
    assert result.loss == read["loss"] == pytest.approx(2.0) and read["kl_replay"] == 5.0
    assert read["loss_total"] == pytest.approx(2.0 + 17.5 / 15)


def test_without_replay_in_a_step_what_is_minimised_is_the_loss_and_is_not_said_twice():
    result = take(DivergingEngine(), batch_of(micro_of([[2]], [0])), teacher=CachedBase(0.5, None))
    read = {mean.name: mean.of(result.sums) for mean in result.means}
    assert read["kl_replay"] is None and read["loss_total"] is None and result.is_sound


def test_what_the_loader_read_reaches_the_device_as_it_is():
    micro = micro_of([[8]], [0])
    policy, teacher = Policy(None, ALONE, False), CachedBase(0.5, None)
    assert teacher.top_tokens(policy, micro) is None
    micro.attached = BaseRows(
        np.arange(2, 4), np.array([[1, 2], [3, 4]], np.int32), np.zeros((2, 2), np.float16)
    )
    base = teacher.top_tokens(policy, micro)
    assert base.beta == 0.5 and base.ids_RK.tolist() == [[1, 2], [3, 4]]
    assert base.rows_R.tolist() == base.host_rows_R.tolist() == [2, 3]


def test_a_divergence_that_is_not_finite_is_not_sound():
    means = CausalLMObjective(["a"], CachedBase(0.5, None)).means
    sums = {"nll/a": 1.0, "targets": 1, "targets/a": 1, "kl": math.inf, "kl_cost": math.inf, "kl_tokens": 1}
    result = StepResult(sums, means, 1, 1.0, 1.0, True, 0)
    assert not result.is_sound and result.unsound == ["kl_replay", "loss_total"]
