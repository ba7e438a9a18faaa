"""Which alphas are evaluated and which one is suggested."""

import pytest

from trainer.command.interpolate import AlphaPoint, export_words, parse_alphas, suggest
from trainer.config.schema import RunConfig
from trainer.errors import ConfigError
from trainer.report.interpolation import rule_sentence


def test_both_ends_are_evaluated():
    assert parse_alphas("0.0:1.0:0.25") == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert parse_alphas("0:1:0.1") == [round(0.1 * i, 1) for i in range(11)]
    assert parse_alphas("0.5:0.5:1") == [0.5]


@pytest.mark.parametrize(
    "text", ["", "0.5", "0:1", "a:b:c", "0:1:0", "0:1:-0.1", "1:0:0.1", "0:2:0.5", "nan:1:1"]
)
def test_anything_else_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match=r"Set interpolate=0\.0:1\.0:0\.1"):
        parse_alphas(text)


def points(*values):
    return [AlphaPoint(alpha, {}, target, general) for alpha, target, general in values]


def test_the_least_general_loss_among_the_best_targets_is_suggested():
    found = points((0.0, 3.0, 2.0), (0.5, 2.02, 2.1), (0.7, 2.005, 2.2), (1.0, 2.0, 2.5))
    assert suggest(found).alpha == 0.5
    assert suggest(points((0.0, 3.0, 2.0), (0.5, 2.03, 2.1), (1.0, 2.0, 2.5))).alpha == 1.0


def test_without_general_sets_the_best_target_is_suggested_and_never_the_base():
    little = points((0.0, 5.5907, None), (0.5, 5.5743, None), (1.0, 5.5582, None))
    assert suggest(little).alpha == 1.0
    assert suggest(points((0.0, 5.5, None), (0.5, 5.6, None), (1.0, 5.7, None))) is None


def test_a_run_that_learnt_less_than_1_percent_is_not_answered_with_the_base():
    found = points((0.0, 5.5907, 2.0), (0.5, 5.5743, 2.1), (0.9, 5.559, 2.2), (1.0, 5.5582, 2.3))
    assert suggest(found).alpha == 0.9


def test_the_rule_is_said():
    assert "the least loss on the other sets" in rule_sentence(0.5, True)
    assert "the least target loss" in rule_sentence(0.5, False)
    assert "nothing to write" in rule_sentence(None, False)


def test_the_command_names_what_was_measured_and_goes_through_a_shell():
    config = RunConfig(run_dir="runs/with a space")
    assert export_words(config, 1.0) == "palimpsest export 'run_dir=runs/with a space' export.alpha=1"
    config.export.average, config.export.checkpoint, config.run_dir = 3, "best", "runs/a"
    assert export_words(config, 0.25) == (
        "palimpsest export run_dir=runs/a export.average=3 export.checkpoint=best export.alpha=0.25"
    )
