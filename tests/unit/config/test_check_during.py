"""Rules about what is evaluated during training and about the best checkpoint."""

import pytest

from trainer.config.check_during import best_problems, during_problems
from trainer.config.data import DataConfig, Format, Role, SourceConfig
from trainer.config.during import AnswersConfig, DuringConfig
from trainer.config.metric import Direction
from trainer.config.store import compose_config
from trainer.config.train import BestConfig, CheckpointConfig, EvaluateConfig

TARGET = {"corpus": SourceConfig()}
BOTH = {**TARGET, "general": SourceConfig(role=Role.replay)}


def keys(evaluate, validation_frac=0.02):
    data = DataConfig(sources=BOTH, validation_frac=validation_frac)
    return [problem.key.removeprefix("evaluate.") for problem in during_problems(evaluate, data)]


@pytest.mark.parametrize(
    ("during", "key"),
    [
        ({"every_steps": -1}, "during.every_steps"),
        ({"max_share": 0.0}, "during.max_share"),
        ({"max_share": 1.5}, "during.max_share"),
        ({"max_share": float("nan")}, "during.max_share"),
        ({"tasks": ["a", "a"]}, "during.tasks"),
        ({"limit": 0}, "during.limit"),
        ({"samples": AnswersConfig(num=-1)}, "during.samples.num"),
        ({"samples": AnswersConfig(max_new_tokens=0)}, "during.samples.max_new_tokens"),
        ({"samples": AnswersConfig(file="prompts.csv")}, "during.samples.file"),
        ({"samples": AnswersConfig(apply_chat_template=True)}, "during.samples.apply_chat_template"),
    ],
)
def test_a_value_out_of_its_range_is_named(during, key):
    assert keys(EvaluateConfig(during=DuringConfig(**during))) == [key]


def test_what_the_defaults_and_the_ends_of_ranges_say_is_right():
    assert keys(EvaluateConfig()) == []
    assert keys(EvaluateConfig(during=DuringConfig(tasks=["a"], every_steps=0, max_share=1, limit=1))) == []


def test_prompts_without_a_file_need_held_out_documents():
    during = DuringConfig(samples=AnswersConfig(num=2))
    assert keys(EvaluateConfig(during=during)) == []
    assert keys(EvaluateConfig(during=during), validation_frac=0.0) == ["during.samples.file"]


def test_the_kl_during_training_needs_what_the_base_said():
    during = DuringConfig(kl=True)
    assert keys(EvaluateConfig(during=during)) == []
    assert keys(EvaluateConfig(during=during, forgetting=False)) == ["forgetting"]
    assert keys(EvaluateConfig(during=during, kl_packs=0)) == ["kl_packs"]


def of_best(metric, direction=None, sources=BOTH, validation_frac=0.02, keep_best=True, **during):
    checkpoint = CheckpointConfig(keep_best=keep_best, best=BestConfig(metric, direction))
    data = DataConfig(sources=sources, validation_frac=validation_frac)
    return list(best_problems(checkpoint, EvaluateConfig(during=DuringConfig(**during)), data))


@pytest.mark.parametrize("metric", ["eval_mean", "eval/corpus", "eval/general", "forgetting"])
def test_every_held_out_number_can_be_the_best(metric):
    assert of_best(metric) == []


def test_the_accuracy_of_held_out_pairs_can_be_the_best_and_more_of_it_is_better():
    pairs = {"pairs": SourceConfig(format=Format.preference, as_chat=True)}
    for metric in ("eval_accuracy/pairs", "eval_pair_loss/pairs"):
        assert of_best(metric, sources=pairs) == []
        assert len(of_best(metric)) == 1
    assert len(of_best("eval_accuracy/pairs", Direction.minimize, sources=pairs)) == 1


def test_kl_and_tasks_can_be_the_best_where_they_are_measured():
    for metric in ("kl_mean", "kl/corpus", "kl/fixed_conversations"):
        assert of_best(metric, kl=True) == []
        assert [problem.key for problem in of_best(metric)] == ["evaluate.during.kl"]
    assert of_best("tasks/arc/acc", tasks=["arc"]) == of_best("tasks/g/f1,x", tasks=["g"]) == []
    assert [problem.key for problem in of_best("tasks/arc/acc")] == ["evaluate.during.tasks"]


@pytest.mark.parametrize(
    ("metric", "options", "said"),
    [
        ("eval/corpse", {}, "Set checkpoint.best.metric=eval/corpus."),
        ("accuracy", {}, "one of eval_mean, eval/corpus, eval/general, forgetting, tasks/TASK/METRIC"),
        ("forgetting", {"sources": TARGET}, "add a source with role=probe"),
        ("eval/corpus", {"validation_frac": 0.0}, "raise data.validation_frac"),
        ("tasks/arc", {"tasks": ["arc"]}, "but is 'tasks/arc' instead"),
        ("kl/general", {"kl": True}, "but is 'kl/general' instead"),
        ("", {}, "but is '' instead"),
    ],
)
def test_a_number_that_never_appears_is_refused_with_those_that_do(metric, options, said):
    (problem,) = of_best(metric, **options)
    assert problem.key == "checkpoint.best.metric" and said in problem.sentence


def test_a_direction_against_the_number_is_refused_and_the_default_is_never_in_the_way():
    (problem,) = of_best("eval/corpus", Direction.maximize)
    assert "`checkpoint.best.direction` must be minimize, or left out, for eval/corpus" in problem.sentence
    assert len(of_best("tasks/a/acc", Direction.minimize, tasks=["a"])) == 1
    assert of_best("tasks/a/made_up", Direction.minimize, tasks=["a"]) == []
    assert [problem.key for problem in of_best("forgetting", keep_best=False)] == ["checkpoint.keep_best"]
    assert of_best("eval_mean", keep_best=False, validation_frac=0.0) == []


def test_a_metric_with_a_comma_can_be_written_on_a_command_line():
    """As docs/evaluation.md has it."""
    config = compose_config(['checkpoint.best.metric="tasks/gsm8k/exact_match,strict-match"'])
    assert config.checkpoint.best.metric == "tasks/gsm8k/exact_match,strict-match"
