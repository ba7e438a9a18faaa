"""Losses of preferences against values worked out by hand, against TRL's own code, and at the ends of the range."""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import logsigmoid

from trainer.config.preference import (
    LOSS_DEFAULTS,
    NOISY,
    UNPAIRED,
    NllMean,
    PreferenceConfig,
    PreferenceLoss,
)
from trainer.objective.preference.answer_losses import answer_losses, reference_point
from trainer.objective.preference.nll_term import nll_sum
from trainer.objective.preference.pair_losses import Sides, pair_losses

LN2 = math.log(2)
PAIRED = [loss for loss in PreferenceLoss if loss not in UNPAIRED]


def options_of(loss: PreferenceLoss, **more: object) -> PreferenceConfig:
    if loss in NOISY:
        more.setdefault("label_noise", 0.1)
    if loss is PreferenceLoss.simpo:
        more.setdefault("gamma", 1.0)
    return PreferenceConfig(loss=loss, **more)


def sides(sums, lengths, reference=None, dtype=torch.float64) -> Sides:
    return Sides(
        torch.as_tensor(sums, dtype=dtype),
        torch.as_tensor(lengths),
        None if reference is None else torch.as_tensor(reference, dtype=dtype),
    )


# ---- by hand


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


# Chosen: sum -4 of 2 tokens, -6 by the reference; so 2 nats more likely, 1 a token.
# Rejected: sum -9 of 3 tokens, -6 by the reference; so 3 nats less likely, 1 a token.
# The gap is 5 nats, 2 of means.
CHOSEN, REJECTED = ([-4.0], [2], [-6.0]), ([-9.0], [3], [-6.0])
BY_HAND = {
    PreferenceLoss.dpo: softplus(-0.5),
    PreferenceLoss.conservative: 0.9 * softplus(-0.5) + 0.1 * softplus(0.5),
    PreferenceLoss.robust: (0.9 * softplus(-0.5) - 0.1 * softplus(0.5)) / 0.8,
    PreferenceLoss.normalised: softplus(-10.0),
    PreferenceLoss.ipo: (2 - 5) ** 2,
    PreferenceLoss.ipo_sum: 0.0,
    PreferenceLoss.hinge: 0.5,
    PreferenceLoss.apo_zero: 1 / (1 + math.exp(0.2)) + 1 / (1 + math.exp(0.3)),
    PreferenceLoss.apo_down: 1 / (1 + math.exp(-0.2)) + 1 / (1 + math.exp(0.5)),
    # Means are -2 and -3.
    PreferenceLoss.simpo: softplus(1 - 2.0),
    PreferenceLoss.cpo: softplus(-0.5),
    # Odds are e^-2 / (1 - e^-2) and e^-3 / (1 - e^-3): their ratio is (e^3 - 1) / (e^2 - 1).
    PreferenceLoss.orpo: 0.1 * math.log1p((math.e**2 - 1) / (math.e**3 - 1)),
}


@pytest.mark.parametrize("loss", PAIRED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_of_a_pair_is_the_one_worked_out_by_hand(loss, dtype):
    found = pair_losses(sides(*CHOSEN, dtype=dtype), sides(*REJECTED, dtype=dtype), options_of(loss))
    assert found.shape == (1,) and found.dtype == dtype
    assert found.item() == pytest.approx(BY_HAND[loss], rel=1e-6 if dtype == torch.float32 else 1e-12)


def test_answers_with_labels_are_those_worked_out_by_hand():
    """Ratios of 3 and -1 nats from a point of 1: 2 beyond it and 2 short of it; beta is 0.1, weights are 1 and 2."""
    ratios, labels = torch.tensor([3.0, -1.0, 3.0]), torch.tensor([True, False, False])
    short = 1 / (1 + math.exp(0.2))
    kto = options_of(PreferenceLoss.kto, undesirable_weight=2.0)
    found = answer_losses(ratios, labels, torch.tensor(1.0), kto)
    assert found.tolist() == pytest.approx([short, 2 * short, 2 * (1 - short)], rel=1e-6)
    apo = answer_losses(ratios, labels, torch.tensor(1.0), options_of(PreferenceLoss.apo_zero_unpaired))
    wanted = [1 / (1 + math.exp(0.3)), 1 / (1 + math.exp(0.1)), 1 / (1 + math.exp(-0.3))]
    assert apo.tolist() == pytest.approx(wanted, rel=1e-6)


def test_the_point_is_a_mean_over_the_step_of_at_least_nothing_and_has_no_gradient():
    ratio_sum = torch.tensor(6.0, requires_grad=True)
    point = reference_point(ratio_sum, 4)
    assert point.item() == 1.5 and not point.requires_grad
    assert reference_point(torch.tensor(-6.0), 4).item() == 0


def test_the_cross_entropy_counts_tokens_or_answers():
    sums, lengths = torch.tensor([-4.0, -9.0]), torch.tensor([2, 3])
    assert nll_sum(sums, lengths, NllMean.tokens).item() == 13
    assert nll_sum(sums, lengths, NllMean.answers).item() == 5


# ---- what must hold of them


@pytest.mark.parametrize("loss", [PreferenceLoss.dpo, PreferenceLoss.conservative, PreferenceLoss.normalised])
def test_a_model_that_is_its_own_reference_loses_ln_2(loss):
    drawn = torch.Generator().manual_seed(1)
    chosen, rejected = -100 * torch.rand(2, 64, generator=drawn)
    lengths = torch.randint(1, 50, (2, 64), generator=drawn)
    found = pair_losses(
        Sides(chosen, lengths[0], chosen), Sides(rejected, lengths[1], rejected), options_of(loss)
    )
    assert (found - LN2).abs().max() < 1e-6


def test_a_step_is_the_sum_of_its_micro_batches():
    """No loss of a pair reads another pair."""
    chosen, rejected = random_sides(12, torch.float64)
    for loss in PAIRED:
        whole = pair_losses(chosen, rejected, options_of(loss))
        parts = [
            pair_losses(part_of(chosen, at), part_of(rejected, at), options_of(loss))
            for at in (slice(5), slice(5, 12))
        ]
        assert torch.equal(whole, torch.cat(parts)), loss


def random_sides(num_pairs: int, dtype: torch.dtype) -> tuple[Sides, Sides]:
    drawn = torch.Generator().manual_seed(7)
    lengths = torch.randint(1, 9, (2, num_pairs), generator=drawn)
    means = -0.05 - 2 * torch.rand(2, 2, num_pairs, generator=drawn, dtype=torch.float64)
    sums, reference = (means * lengths).to(dtype)
    return Sides(sums[0], lengths[0], reference[0]), Sides(sums[1], lengths[1], reference[1])


def part_of(side: Sides, at: slice) -> Sides:
    assert side.reference_P is not None
    return Sides(side.sums_P[at], side.lengths_P[at], side.reference_P[at])


@pytest.mark.parametrize("loss", PAIRED)
def test_gradients_of_pairs_are_the_differences(loss):
    chosen, rejected = random_sides(6, torch.float64)

    def of_sums(chosen_P, rejected_P):
        return pair_losses(
            Sides(chosen_P, chosen.lengths_P, chosen.reference_P),
            Sides(rejected_P, rejected.lengths_P, rejected.reference_P),
            options_of(loss, beta=0.7),
        )

    assert torch.autograd.gradcheck(
        of_sums, (chosen.sums_P.requires_grad_(), rejected.sums_P.requires_grad_()), eps=1e-7
    )


@pytest.mark.parametrize("loss", sorted(UNPAIRED, key=lambda loss: loss.value))
def test_gradients_of_answers_are_the_differences(loss):
    ratios = torch.linspace(-3, 3, 8, dtype=torch.float64, requires_grad=True)
    labels, point = torch.arange(8) % 2 == 0, torch.tensor(0.4, dtype=torch.float64)
    options = options_of(loss, desirable_weight=1.3)
    assert torch.autograd.gradcheck(lambda found: answer_losses(found, labels, point, options), ratios)


@pytest.mark.parametrize("loss", PAIRED)
@pytest.mark.parametrize("gap", [-1e5, 1e5])
def test_far_apart_sides_give_finite_losses_and_gradients(loss, gap):
    """A softmax that is taken apart into exp and log overflows here, and a sigmoid of its own loses its gradient."""
    sums = torch.tensor([[-1e5 + gap / 2], [-1e5 - gap / 2]], requires_grad=True)
    lengths, reference = torch.tensor([100]), torch.tensor([-1e5])
    chosen, rejected = Sides(sums[0], lengths, reference), Sides(sums[1], lengths, reference)
    found = pair_losses(chosen, rejected, options_of(loss))
    found.sum().backward()
    assert found.isfinite().all() and sums.grad is not None and sums.grad.isfinite().all()
    if loss is PreferenceLoss.dpo:
        assert found.item() == pytest.approx(max(0, -0.1 * gap))


def test_a_certain_answer_has_odds_that_end():
    """A mean log-probability of 0 has odds without an end, and a gradient that is no number."""
    sums = torch.tensor([[0.0], [-3.0]], requires_grad=True)
    lengths = torch.tensor([3])
    orpo = options_of(PreferenceLoss.orpo)
    for chosen, rejected in ((0, 1), (1, 0)):
        sums.grad = None
        found = pair_losses(Sides(sums[chosen], lengths, None), Sides(sums[rejected], lengths, None), orpo)
        found.sum().backward()
        assert found.isfinite().all() and sums.grad is not None and sums.grad.isfinite().all()


def test_every_loss_has_defaults_with_a_source():
    assert set(LOSS_DEFAULTS) == set(PreferenceLoss)
    assert all(default.beta > 0 and default.source for default in LOSS_DEFAULTS.values())
    options = PreferenceConfig(loss=PreferenceLoss.orpo)
    assert (options.chosen_beta, options.chosen_nll_weight, options.needs_reference) == (0.1, 1, False)
    assert PreferenceConfig(beta=0.3, nll_weight=0.5).chosen_beta == 0.3


# ---- against TRL's own code, which is given tensors in place of a model

NUM_PAIRS = 5
DPO_NAMES = {
    PreferenceLoss.dpo: "sigmoid",
    PreferenceLoss.robust: "robust",
    PreferenceLoss.normalised: "sigmoid_norm",
    PreferenceLoss.ipo: "ipo",
    PreferenceLoss.hinge: "hinge",
    PreferenceLoss.apo_zero: "apo_zero",
    PreferenceLoss.apo_down: "apo_down",
}


class Packed:
    """Log-probabilities of some answers as TRL has them: a row each, the prompts and the padding masked."""

    def __init__(self, num_rows: int, seed: int = 3) -> None:
        drawn = torch.Generator().manual_seed(seed)
        self.lengths = torch.randint(1, 9, (num_rows,), generator=drawn)
        prompts = torch.randint(1, 5, (num_rows,), generator=drawn)
        place = torch.arange(16)
        self.mask = ((place >= prompts[:, None]) & (place < (prompts + self.lengths)[:, None])).long()
        self.ids = torch.randint(0, 9, (num_rows, 16), generator=drawn)
        shown = self.mask[:, 1:]
        self.log_probs = -2 * torch.rand(num_rows, 15, generator=drawn, dtype=torch.float64) * shown
        self.reference = self.log_probs.sum(1) + torch.randn(num_rows, generator=drawn, dtype=torch.float64)
        self.log_probs.requires_grad_()

    def model(self, **_: object) -> SimpleNamespace:
        other = torch.zeros(len(self.ids), 15)
        return SimpleNamespace(
            log_probs=self.log_probs, entropy=other, mean_logits=other, is_top1=other.bool()
        )

    def inputs(self) -> dict[str, torch.Tensor]:
        return {
            "input_ids": self.ids,
            "attention_mask": torch.ones_like(self.ids),
            "completion_mask": self.mask,
        }

    def sides(self) -> tuple[Sides, Sides]:
        chosen, rejected = slice(NUM_PAIRS), slice(NUM_PAIRS, None)
        sums = self.log_probs.sum(1)
        first, second = (Sides(sums[at], self.lengths[at], self.reference[at]) for at in (chosen, rejected))
        return first, second

    def gradient(self) -> torch.Tensor:
        assert self.log_probs.grad is not None
        found, self.log_probs.grad = self.log_probs.grad, None
        return found


def alone(**options: object) -> SimpleNamespace:
    """Stand in for a trainer of one process."""
    same = SimpleNamespace(
        device=torch.device("cpu"), gather=lambda found: found, gather_for_metrics=lambda found: found
    )
    return SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=same,
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        **options,
    )


@pytest.mark.parametrize("loss", DPO_NAMES)
def test_losses_of_pairs_are_those_of_trl(loss):
    dpo_trainer = pytest.importorskip("trl.trainer.dpo_trainer")
    rows, options = Packed(2 * NUM_PAIRS), options_of(loss)
    theirs = alone(
        beta=options.chosen_beta,
        label_smoothing=options.label_noise,
        loss_types=[DPO_NAMES[loss]],
        loss_weights=[1.0],
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        use_weighting=False,
    )
    reference = {
        "ref_chosen_logps": rows.reference[:NUM_PAIRS],
        "ref_rejected_logps": rows.reference[NUM_PAIRS:],
    }
    wanted = dpo_trainer.DPOTrainer._compute_loss(theirs, rows.model, rows.inputs() | reference, False)
    wanted.backward()
    gradient = rows.gradient()
    ours = pair_losses(*rows.sides(), options).sum() / NUM_PAIRS
    ours.backward()
    assert ours.item() == pytest.approx(wanted.item(), rel=1e-9)
    assert torch.allclose(rows.gradient(), gradient, rtol=1e-9, atol=0)


def test_the_cross_entropy_over_tokens_is_that_of_trl():
    dpo_trainer = pytest.importorskip("trl.trainer.dpo_trainer")
    rows = Packed(2 * NUM_PAIRS)
    theirs = alone(
        beta=0.1,
        loss_types=["sigmoid", "sft"],
        loss_weights=[1.0, 0.5],
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        use_weighting=False,
    )
    reference = {
        "ref_chosen_logps": rows.reference[:NUM_PAIRS],
        "ref_rejected_logps": rows.reference[NUM_PAIRS:],
    }
    wanted = dpo_trainer.DPOTrainer._compute_loss(theirs, rows.model, rows.inputs() | reference, False)
    chosen, rejected = rows.sides()
    nll = nll_sum(chosen.sums_P, chosen.lengths_P, NllMean.tokens) / int(chosen.lengths_P.sum())
    pairs = pair_losses(chosen, rejected, options_of(PreferenceLoss.dpo)).sum() / NUM_PAIRS
    assert (pairs + 0.5 * nll).item() == pytest.approx(wanted.item(), rel=1e-9)


@pytest.mark.parametrize("loss", [PreferenceLoss.simpo, PreferenceLoss.cpo])
def test_losses_without_a_reference_are_those_of_trl(loss):
    cpo_trainer = pytest.importorskip("trl.experimental.cpo.cpo_trainer")
    chosen, rejected = Packed(2 * NUM_PAIRS).sides()
    options = options_of(loss)
    is_simpo = loss is PreferenceLoss.simpo
    theirs = alone(
        beta=options.chosen_beta,
        alpha=0.0,
        label_smoothing=0.0,
        loss_type="simpo" if is_simpo else "sigmoid",
        simpo_gamma=options.gamma,
    )
    given = [side.means_P if is_simpo else side.sums_P for side in (chosen, rejected)]
    wanted, _, _ = cpo_trainer.CPOTrainer.cpo_loss(theirs, *given)
    assert torch.allclose(pair_losses(chosen, rejected, options), wanted, rtol=1e-9, atol=0)


def test_odds_are_those_of_trl():
    orpo_trainer = pytest.importorskip("trl.experimental.orpo.orpo_trainer")
    chosen, rejected = Packed(2 * NUM_PAIRS).sides()
    wanted, *_ = orpo_trainer.ORPOTrainer.odds_ratio_loss(alone(beta=0.1), chosen.means_P, rejected.means_P)
    found = pair_losses(chosen, rejected, options_of(PreferenceLoss.orpo))
    assert torch.allclose(found.float(), -wanted, rtol=1e-5, atol=0), "TRL takes them in float32"


@pytest.mark.parametrize("loss", sorted(UNPAIRED, key=lambda loss: loss.value))
def test_losses_of_answers_with_labels_are_those_of_trl(loss):
    kto_trainer = pytest.importorskip("trl.trainer.kto_trainer")
    rows, options = Packed(6), options_of(loss, desirable_weight=1.3)
    labels = torch.tensor([True, False, False, True, True, False])
    is_kto = loss is PreferenceLoss.kto
    mismatched = torch.linspace(0.1, 2, 6, dtype=torch.float64)
    theirs = alone(
        beta=0.1,
        calculate_KL=is_kto,
        loss_type=loss.value,
        desirable_weight=1.3,
        undesirable_weight=1.0,
        _compute_kl_logps=lambda model, batch: mismatched if is_kto else None,
    )
    given = rows.inputs() | {
        "label": labels,
        "ref_logps": rows.reference,
        "ref_KL_logps": torch.zeros_like(mismatched),
    }
    wanted = kto_trainer.KTOTrainer._compute_loss(theirs, rows.model, given, False)
    point = reference_point(mismatched.sum(), 6)
    found = answer_losses(rows.log_probs.sum(1) - rows.reference, labels, point, options).sum() / 6
    assert found.item() == pytest.approx(wanted.item(), rel=1e-9)


def test_conservative_labels_are_those_of_openrlhf():
    """Its DPOLoss with label_smoothing, from openrlhf/models/loss.py at 0.11.2; IPO over sums is from there too."""
    chosen, rejected = Packed(2 * NUM_PAIRS).sides()
    logits = (chosen.sums_P - rejected.sums_P) - (chosen.reference_P - rejected.reference_P)
    wanted = -logsigmoid(0.1 * logits) * 0.9 - logsigmoid(-0.1 * logits) * 0.1
    found = pair_losses(chosen, rejected, options_of(PreferenceLoss.conservative))
    assert torch.allclose(found, wanted, rtol=1e-9, atol=0)
    ipo = pair_losses(chosen, rejected, options_of(PreferenceLoss.ipo_sum))
    assert torch.allclose(ipo, (logits - 1 / 0.2) ** 2, rtol=1e-9, atol=0)
