"""Rules about the losses of preferences: what a loss does not read is refused, and what it reads is in its range."""

import math

import pytest
import torch

from tests.helpers.tiny import tiny_config
from tests.house.tree import ROOT
from tests.unit.config.test_check import edited
from trainer.config.check import find_problems
from trainer.config.check_preference import preference_problems
from trainer.config.data import Format, SourceConfig
from trainer.config.gate import GateRule
from trainer.config.objective import ObjectiveConfig, ObjectiveKind
from trainer.config.preference import LOSS_DEFAULTS, NOISY, NllMean, NllOver, PreferenceConfig, PreferenceLoss
from trainer.objective.preference.pair_losses import Sides, pair_losses


@pytest.fixture
def config(tmp_path):
    return tiny_config(tmp_path)


def test_what_is_left_open_is_told_with_whose_choice_it_is():
    told = PreferenceConfig(loss=PreferenceLoss.dpo).described
    assert told == "Loss of preferences: dpo, beta 0.1 (arXiv:2305.18290, TRL)."
    given = PreferenceConfig(loss=PreferenceLoss.simpo, beta=2.5, gamma=1.0, nll_weight=0.5).described
    assert given == (
        "Loss of preferences: simpo, beta 2.5; cross-entropy of chosen answers times 0.5, over answer, a mean over "
        "tokens; gamma 1."
    )


def test_what_the_loss_is_made_of_is_told_with_its_units():
    orpo = PreferenceConfig(loss=PreferenceLoss.orpo)
    assert orpo.told_loss(has_text=False) == (
        "`loss` is what is minimised: pair_loss (mean of orpo over pairs, no unit), plus 1 x nll_chosen (cross-entropy "
        "of chosen answers, nats a token)."
    )
    kto = PreferenceConfig(loss=PreferenceLoss.kto, text_weight=0.5)
    assert kto.told_loss(has_text=True) == (
        "`loss` is what is minimised: answer_loss (mean of kto over answers, no unit), plus 0.5 x the cross-entropy of "
        "sources without preferences (nats a token)."
    )
    assert kto.told_loss(has_text=False).endswith("no unit).")


def sentences(**options):
    return [problem.sentence for problem in preference_problems(PreferenceConfig(**options))]


@pytest.mark.parametrize("loss", PreferenceLoss)
def test_every_loss_stands_with_its_defaults(loss):
    assert sentences(loss=loss, label_noise=0.1 if loss in NOISY else 0.0) == []


@pytest.mark.parametrize("beta", [0.0, -1.0, math.inf, math.nan, 9e-7, 1001.0, 1e308])
def test_beta_is_above_nothing_and_what_float32_holds(beta):
    assert sentences(beta=beta) == [
        "`objective.preference.beta` must be a number from 1e-06 to 1000, beyond which losses leave float32, or null, "
        f"but is {beta} instead. Leave it out for 0.1 (arXiv:2305.18290, TRL)."
    ]


@pytest.mark.parametrize("beta", [1e-6, 1e3])
@pytest.mark.parametrize("loss", [loss for loss in PreferenceLoss if PreferenceConfig(loss).is_paired])
def test_a_loss_and_its_gradient_are_finite_at_both_ends_of_beta(loss, beta):
    """In float32, of an answer of 8,000 tokens that the model has lost 3 nats a token of, either way round."""
    options = PreferenceConfig(loss=loss, beta=beta, label_noise=0.1 if loss in NOISY else 0.0)
    assert sentences(loss=loss, beta=beta, label_noise=options.label_noise) == []
    lengths, reference = torch.tensor([8000.0, 8000.0]), torch.tensor([-8e3, -8e3])
    chosen, rejected = (torch.tensor(sums, requires_grad=True) for sums in ([-32e3, -8e3], [-8e3, -32e3]))
    found = pair_losses(Sides(chosen, lengths, reference), Sides(rejected, lengths, reference), options)
    found.sum().backward()
    assert found.dtype is torch.float32
    assert all(bool(one.isfinite().all()) for one in (found, chosen.grad, rejected.grad))


@pytest.mark.parametrize("noise", [0.0, 0.5, -0.1, math.nan])
def test_a_loss_that_expects_wrong_labels_is_told_how_many(noise):
    (said,) = sentences(loss=PreferenceLoss.robust, label_noise=noise)
    assert said.startswith(
        "`objective.preference.label_noise` must be above 0 and below 0.5 for loss=robust, but is"
    )


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"label_noise": 0.1}, "label_noise"),
        ({"gamma": 0.5}, "gamma"),
        ({"desirable_weight": 2.0}, "desirable_weight"),
        ({"undesirable_weight": 0.0}, "undesirable_weight"),
        ({"loss": PreferenceLoss.kto, "undesirable_weight": 0.0}, "undesirable_weight"),
        ({"loss": PreferenceLoss.kto, "desirable_weight": math.inf}, "desirable_weight"),
        ({"loss": PreferenceLoss.kto, "nll_weight": 1.0}, "nll_weight"),
        ({"loss": PreferenceLoss.simpo, "gamma": -1.0}, "gamma"),
        ({"nll_weight": -1.0}, "nll_weight"),
        ({"nll_weight": math.nan}, "nll_weight"),
        ({"nll_weight": 1e308}, "nll_weight"),
        ({"text_weight": 1e308}, "text_weight"),
        ({"loss": PreferenceLoss.kto, "desirable_weight": 1e308}, "desirable_weight"),
        ({"loss": PreferenceLoss.simpo, "gamma": 1e308}, "gamma"),
        ({"nll_over": NllOver.prompt_and_answer}, "nll_over"),
    ],
)
def test_an_option_that_does_nothing_or_harm_is_named(options, key):
    (said,) = sentences(**options)
    assert said.startswith(f"`objective.preference.{key}` must be ")


def test_who_forgets_the_objective_of_pairs_is_told_which_there_are(config):
    (found,) = find_problems(edited(config, {"data.sources.text.format": Format.preference}))
    assert found.sentence.startswith(
        "`data.sources.text.format` must be text, completion, chat or ids for objective=causal_lm, but is "
        "'preference' instead. To learn from pairs set objective=dpo (normalised, ipo, "
    )
    assert found.sentence.endswith("with columns.completion=chosen and columns.ignore=[rejected].")


def test_what_only_losses_of_preferences_read_is_refused_without_one(config):
    (found,) = find_problems(edited(config, {"objective.preference.loss": PreferenceLoss.orpo}))
    assert found.sentence == (
        "`objective.preference.loss` must be dpo with objective=causal_lm, which does not read it, but is 'orpo' "
        "instead. Set objective=orpo, or remove it."
    )


def test_an_objective_is_named_as_it_is_chosen():
    options = ObjectiveConfig(ObjectiveKind.preference, PreferenceConfig(loss=PreferenceLoss.orpo))
    assert options.named == "objective=orpo"
    assert ObjectiveConfig(ObjectiveKind.weighted).named == "objective=weighted"


def test_files_of_a_source_whose_name_is_mistyped_are_asked_about(config):
    sources = {"pairs": SourceConfig(format=Format.chat), "par": SourceConfig(path="pairs.jsonl")}
    (found,) = find_problems(edited(config, {"data.sources": sources}))
    assert found.sentence == (
        "`data.sources.pairs.path` must be given, but is null instead. Set data.sources.pairs.path=FILES, or "
        "data.sources.pairs.dataset=NAME. Did you mean it by `data.sources.par`?"
    )


def test_the_page_has_the_defaults_of_every_loss():
    text = (ROOT / "docs" / "objectives.md").read_text(encoding="utf-8")
    for loss, own in LOSS_DEFAULTS.items():
        weight = f"times {own.nll_weight:g}" if own.nll_weight else "none"
        assert f"| `{loss.value}` | {own.beta:g} | {weight} | {own.source} |" in text


def _paired(config, loss, rules):
    config.objective = ObjectiveConfig(kind=ObjectiveKind.preference, preference=PreferenceConfig(loss=loss))
    config.data.sources = {"pairs": SourceConfig(path="x", format=Format.preference)}
    config.gate.sets = rules
    return [one.sentence for one in find_problems(config) if "gate" in one.key]


@pytest.mark.parametrize("key", ["target", "pairs"])
def test_a_gate_does_not_ask_preferences_to_make_chosen_answers_likely(config, key):
    """They commonly become less so, and every such run was refused by gate=default."""
    rules = {key: GateRule(min_drop_nats=0.0)}
    (said,) = _paired(config, PreferenceLoss.dpo, rules)
    assert f"`gate.sets.{key}.min_drop_nats` must be left out for pairs" in said and "gate=preference" in said
    assert not _paired(config, PreferenceLoss.orpo, rules)  # the cross-entropy of chosen answers is in it
    assert not _paired(config, PreferenceLoss.dpo, {key: GateRule(max_rise_nats=0.1)})


@pytest.mark.parametrize(
    ("name", "value"), [("nll_over", NllOver.prompt_and_answer), ("nll_mean", NllMean.answers)]
)
def test_what_a_cross_entropy_is_of_is_refused_where_there_is_none(name, value):
    """It trained, and changed nothing."""
    (said,) = preference_problems(PreferenceConfig(**{name: value}))
    assert f"`objective.preference.{name}` must be" in said.sentence and "nll_weight=1" in said.sentence
    assert not list(preference_problems(PreferenceConfig(nll_weight=1.0, **{name: value})))
    assert not list(preference_problems(PreferenceConfig(loss=PreferenceLoss.orpo, **{name: value})))
