"""The numbers of a log line, from a window of steps."""

from __future__ import annotations

import pytest

from trainer.metrics.flops import ModelShape
from trainer.metrics.mean import Mean
from trainer.metrics.meter import Meter

SHAPE = ModelShape(num_matmul_params=1000, num_layers=2, q_dim=8, num_params=1500)


def _add(meter: Meter, step_time_s: float = 2.0, data_wait_s: float = 0.5) -> None:
    meter.add(
        step_time_s=step_time_s,
        num_tokens_global=400,
        num_targets_global=100,
        sum_len_sq_global=400.0 * 50,
        data_wait_s=data_wait_s,
    )


def test_speed_is_over_the_whole_window() -> None:
    meter = Meter(num_ranks=4)
    _add(meter, step_time_s=1.0, data_wait_s=0.0)
    _add(meter, step_time_s=3.0, data_wait_s=1.0)
    record = meter.flush()
    assert record["tokens_per_s"] == 200
    assert record["tokens_per_s_per_gpu"] == 50
    assert record["step_time_s"] == 2
    assert record["data_wait_frac"] == 0.25
    assert record["targets_frac"] == 0.25


LOSS = Mean("loss", ("nll/web", "nll/replay"), ("targets/web", "targets/replay"))
WEB = Mean("loss/web", ("nll/web",), ("targets/web",))
REPLAY = Mean("loss/replay", ("nll/replay",), ("targets/replay",))


def test_loss_is_weighted_by_tokens_not_by_sources() -> None:
    """A mean of means (2.5 here) is the classic bug: a small source would count as a large one."""
    meter = Meter(num_ranks=1)
    meter.add_sums({"nll/web": 300.0, "targets/web": 300, "nll/replay": 200.0, "targets/replay": 50})
    meter.add_sums({"nll/replay": 200.0, "targets/replay": 50})
    record = meter.flush((LOSS, WEB, REPLAY))
    assert record["loss"] == pytest.approx(700 / 400)
    assert record["loss/web"] == 1.0
    assert record["loss/replay"] == 4.0


def test_a_reading_of_which_nothing_was_counted_has_no_key() -> None:
    meter = Meter(num_ranks=1)
    meter.add_sums({"nll/web": 0.0, "targets/web": 0})
    assert meter.flush((LOSS, WEB)) == {}


def test_a_reading_that_needs_a_count_is_left_out_without_it() -> None:
    total = Mean("loss_total", ("nll/web", "cost"), ("targets/web",), needs="kl_tokens")
    sums = {"nll/web": 3.0, "cost": 1.0, "targets/web": 2.0}
    assert total.of({**sums, "kl_tokens": 0.0}) is None
    assert total.of({**sums, "kl_tokens": 1.0}) == 2.0


def test_means_that_are_added_keep_their_own_counts() -> None:
    whole = Mean("loss", ("pairs",), ("num_pairs",), plus=((0.5, Mean("text", ("nll",), ("targets",))),))
    sums = {"pairs": 6.0, "num_pairs": 3, "nll": 40.0, "targets": 10}
    assert whole.of(sums) == 2.0 + 0.5 * 4.0
    assert whole.of({**sums, "targets": 0}) == 2.0 and whole.of({**sums, "num_pairs": 0}) == 2.0
    assert whole.of({}) is None


def test_mfu_uses_the_document_lengths() -> None:
    meter = Meter(num_ranks=2, shape=SHAPE, peak_flops=1e6)
    _add(meter)
    record = meter.flush()
    attention = 6 * 50 * 8 * 2
    assert record["mfu"] == pytest.approx(100 * (6 * 1000 + attention) / 1e6)
    assert record["mfu_non_causal"] == pytest.approx(100 * (6 * 1000 + 2 * attention) / 1e6)


@pytest.mark.parametrize(("shape", "peak"), [(None, 1e6), (SHAPE, None)])
def test_mfu_is_left_out_when_unknown(shape: ModelShape | None, peak: float | None) -> None:
    meter = Meter(num_ranks=1, shape=shape, peak_flops=peak)
    _add(meter)
    assert not {"mfu", "mfu_non_causal"} & set(meter.flush())


def test_flush_starts_a_new_window() -> None:
    meter = Meter(num_ranks=1)
    _add(meter)
    meter.add_sums({"nll/web": 1.0, "targets/web": 1})
    assert meter.flush((WEB,))["loss/web"] == 1.0
    assert meter.flush((WEB,)) == {}
    _add(meter)
    assert meter.flush()["tokens_per_s"] == 200


def test_eta_survives_the_window_and_forgets_the_slow_first_step() -> None:
    meter = Meter(num_ranks=1)
    _add(meter, step_time_s=90.0)
    assert meter.flush(remaining_steps=10)["eta_s"] == 900
    for _ in range(5):
        _add(meter, step_time_s=2.0)
    assert meter.flush(remaining_steps=100)["eta_s"] == pytest.approx(200)
    assert meter.flush(remaining_steps=0)["eta_s"] == 0


def test_a_slow_step_moves_the_time_left_by_nothing() -> None:
    meter = Meter(num_ranks=1)
    for step_time_s in (9.0, 2.0, 2.0, 60.0, 2.0):
        _add(meter, step_time_s=step_time_s)
    assert meter.flush(remaining_steps=100)["eta_s"] == 200


def test_the_time_left_counts_the_evaluations_to_come() -> None:
    meter = Meter(num_ranks=1)
    meter.add_evaluation(7.0)
    meter.add(2.0, 100, 10, 100.0, 0.0)
    assert meter.flush(remaining_steps=3, remaining_evaluations=2)["eta_s"] == 3 * 2 + 2 * 7
    assert meter.flush(remaining_steps=0, remaining_evaluations=1)["eta_s"] == 7


def test_memory_is_passed_through() -> None:
    assert Meter(num_ranks=1).flush(memory_gib=61.5) == {"memory_gib": 61.5}


def test_rounds_of_answers_have_their_share_of_the_time_and_are_foreseen() -> None:
    meter = Meter(num_ranks=1)
    meter.add_round(3.0, num_answers=4, num_tokens=40, num_ended=1)
    meter.add_round(1.0, num_answers=4, num_tokens=20, num_ended=3)
    _add(meter, step_time_s=6.0)
    record = meter.flush(remaining_steps=2, remaining_rounds=5)
    assert (record["answers_sampled"], record["answer_tokens"], record["answers_ended"]) == (8, 7.5, 0.5)
    assert record["sampling_share"] == pytest.approx(4 / 10)
    assert record["eta_s"] == 2 * 6 + 5 * 1
    _add(meter)
    assert not {"answers_sampled", "sampling_share"} & set(meter.flush())
