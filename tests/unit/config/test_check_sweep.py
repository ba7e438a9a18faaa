"""Rules of the sweep section."""

import pytest

from trainer.config.check_sweep import METRICS, sweep_problems
from trainer.config.data import DataConfig, Role, SourceConfig
from trainer.config.sweep import SweepConfig
from trainer.metrics.meter import Meter
from trainer.objective.causal_lm.cross_entropy import CausalLMObjective

SOURCES = {"corpus": SourceConfig(), "general": SourceConfig(role=Role.replay)}


def problems(validation_frac=0.02, **fields):
    data = DataConfig(sources=SOURCES, validation_frac=validation_frac)
    return list(sweep_problems(SweepConfig(**fields), data))


@pytest.mark.parametrize("objective", ["eval_mean", "eval/general", "loss/corpus", "tokens_per_s", "mfu"])
def test_a_number_that_is_logged_is_an_objective(objective):
    assert problems(objective=objective) == []


@pytest.mark.parametrize(
    ("objective", "near"),
    [("eval/corpse", "eval/corpus"), ("held_out", "eval_mean"), ("tokens", "tokens_seen")],
)
def test_a_number_that_is_not_logged_names_the_nearest(objective, near):
    (problem,) = problems(objective=objective)
    assert f"but is '{objective}' instead. Set sweep.objective={near}." in problem.sentence


def test_held_out_loss_needs_held_out_documents_unless_a_source_is_only_evaluated():
    (problem,) = problems(validation_frac=0.0)
    assert problem.sentence.startswith(
        "`data.validation_frac` must be more than 0 for sweep.objective=eval_mean"
    )
    data = DataConfig(sources={**SOURCES, "maths": SourceConfig(role=Role.probe)}, validation_frac=0.0)
    assert list(sweep_problems(SweepConfig(objective="eval/maths"), data)) == []
    assert len(list(sweep_problems(SweepConfig(objective="eval/corpus"), data))) == 1


def test_every_broken_rule_is_told():
    told = problems(trials=0, parallel=0, poll_s=0.0)
    assert [problem.key for problem in told] == ["sweep.trials", "sweep.parallel", "sweep.poll_s"]


def test_the_list_of_metrics_has_what_the_meter_writes():
    meter = Meter(1, None, None, None)
    meter.add(0.5, 100, 80, 5000.0, 0.1)
    means = CausalLMObjective(["corpus"], teacher=object()).means
    meter.add_sums({name: 1.0 for mean in means for name in (*mean.over, *mean.per)})
    written = {key for key in meter.flush(means, 3, 1.0) if "/" not in key} - {"eta_s", "targets_frac"}
    assert {"loss", "loss_total", "kl_replay"} <= written
    assert written <= set(METRICS)
