"""Rules of the sweep section."""

import pytest

from trainer.config.check_sweep import METRICS, sweep_problems
from trainer.config.data import DataConfig, Format, Role, SourceConfig
from trainer.config.during import DuringConfig
from trainer.config.metric import Direction
from trainer.config.sweep import SweepConfig
from trainer.config.train import EvaluateConfig
from trainer.metrics.meter import Meter
from trainer.objective.causal_lm.cross_entropy import CausalLMObjective

SOURCES = {"corpus": SourceConfig(), "general": SourceConfig(role=Role.replay)}


def problems(validation_frac=0.02, evaluate=None, sources=SOURCES, **fields):
    data = DataConfig(sources=sources, validation_frac=validation_frac)
    return list(sweep_problems(SweepConfig(**fields), data, evaluate or EvaluateConfig()))


@pytest.mark.parametrize(
    "objective",
    ["eval_mean", "eval/general", "loss/corpus", "tokens_per_s", "mfu", "forgetting", "tasks_time_s"],
)
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
    probed = {**SOURCES, "maths": SourceConfig(role=Role.probe)}
    for objective, count in (("eval/maths", 0), ("forgetting", 0), ("eval_mean", 0), ("eval/corpus", 1)):
        assert len(problems(0.0, objective=objective, sources=probed)) == count, objective


def test_forgetting_needs_a_source_that_is_no_target():
    (problem,) = problems(objective="forgetting", sources={"corpus": SourceConfig()})
    assert "where every source is a target" in problem.sentence


def test_a_task_is_an_objective_where_it_is_run_and_in_the_direction_that_it_has():
    """A sweep that minimizes an accuracy would name the worst point the best."""
    during = EvaluateConfig(during=DuringConfig(tasks=["arc_easy"], kl=True))
    acc = {"objective": "tasks/arc_easy/acc", "direction": Direction.maximize}
    assert problems(evaluate=during, **acc) == problems(evaluate=during, objective="kl_mean") == []
    (wrong,) = problems(evaluate=during, objective="tasks/arc_easy/acc")
    assert "`sweep.direction` must be maximize for sweep.objective=tasks/arc_easy/acc" in wrong.sentence
    assert problems(evaluate=during, objective="tasks/arc_easy/made_up") == [], "known where it is loaded"
    (absent,) = problems(**acc)
    assert absent.sentence.endswith("Set evaluate.during.tasks=[arc_easy].")
    assert [problem.key for problem in problems(objective="kl/corpus")] == ["evaluate.during.kl"]
    (cut,) = problems(evaluate=during, objective="tasks/arc_easy")
    assert cut.key == "sweep.objective"


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


def test_the_accuracy_of_held_out_pairs_is_an_objective_in_its_direction():
    pairs = {"pairs": SourceConfig(format=Format.preference, as_chat=True)}
    (problem,) = problems(objective="eval_accuracy/pairs", sources=pairs)
    assert problem.sentence.startswith(
        "`sweep.direction` must be maximize for sweep.objective=eval_accuracy/pairs"
    )
    options = {"direction": Direction.maximize, "sources": pairs}
    assert problems(objective="eval_accuracy/pairs", **options) == []
    assert problems(objective="eval_pair_loss/pairs", sources=pairs) == []
    (problem,) = problems(objective="eval_accuracy/corpus")
    assert problem.key == "sweep.objective"
