"""Config section for losses of preferences: pairs of answers to one prompt, and answers with a label."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class PreferenceLoss(Enum):
    """What is minimised of a pair, or of an answer with a label.

    s is the sum of an answer's log-probabilities, n the number of its tokens, r = s - s of the reference; c is
    the chosen answer and j the rejected one.
    """

    dpo = "dpo"
    """-log sigmoid(beta (r_c - r_j))."""
    conservative = "conservative"
    """DPO in which a share `label_noise` of the pairs is taken to be the other way round."""
    robust = "robust"
    """The same with the bias of that share taken out, over 1 - 2 label_noise."""
    normalised = "normalised"
    """DPO of means: -log sigmoid(beta (r_c / n_c - r_j / n_j))."""
    ipo = "ipo"
    """(r_c / n_c - r_j / n_j - 1 / (2 beta))^2: means, as its authors and TRL have it."""
    ipo_sum = "ipo_sum"
    """(r_c - r_j - 1 / (2 beta))^2: sums, as OpenRLHF has it."""
    hinge = "hinge"
    """max(0, 1 - beta (r_c - r_j))."""
    apo_zero = "apo_zero"
    """1 - sigmoid(beta r_c) + sigmoid(beta r_j), for chosen answers better than the model's own."""
    apo_down = "apo_down"
    """sigmoid(beta r_c) + 1 - sigmoid(beta (r_c - r_j)), for chosen answers worse than the model's own."""
    simpo = "simpo"
    """-log sigmoid(beta (s_c / n_c - s_j / n_j) - gamma), without a reference."""
    cpo = "cpo"
    """-log sigmoid(beta (s_c - s_j)), without a reference."""
    orpo = "orpo"
    """-beta log sigmoid(log odds of s_c / n_c - those of s_j / n_j), without a reference."""
    kto = "kto"
    """Of one answer with a label: w (1 - sigmoid(beta (r - z))), of an undesirable one w (1 - sigmoid(beta (z - r))).
    z is how far the model is from its reference on answers to other prompts, 0 or more."""
    apo_zero_unpaired = "apo_zero_unpaired"
    """The same without z."""


class NllOver(Enum):
    """Of what the cross-entropy is that is added to a loss of pairs."""

    answer = "answer"
    """The chosen answer."""
    prompt_and_answer = "prompt_and_answer"
    """The prompt and the chosen answer, as TRL has it in ORPO."""


class NllMean(Enum):
    """What the cross-entropy that is added to a loss of pairs is a mean over."""

    tokens = "tokens"
    """All of its tokens in a step, as TRL has it; long answers count more."""
    answers = "answers"
    """The answers of a step, each of which is a mean over its own tokens, as in iterative RPO."""


UNPAIRED = frozenset({PreferenceLoss.kto, PreferenceLoss.apo_zero_unpaired})
"""Losses of one answer with a label; the others are of pairs."""
FREE = frozenset({PreferenceLoss.simpo, PreferenceLoss.cpo, PreferenceLoss.orpo})
"""Losses that need no reference."""
OF_MEANS = frozenset(
    {PreferenceLoss.normalised, PreferenceLoss.ipo, PreferenceLoss.simpo, PreferenceLoss.orpo}
)
"""Losses that compare what a token of an answer has on average, and not its sum."""
NOISY = frozenset({PreferenceLoss.conservative, PreferenceLoss.robust})
"""Losses that read label_noise."""


@dataclass(frozen=True, slots=True)
class LossDefault:
    """What a loss takes where the configuration leaves it open."""

    beta: float
    nll_weight: float
    source: str
    """Whose choice that is, as it is printed."""


DPO_PAPER = "arXiv:2305.18290, TRL"
LOSS_DEFAULTS: dict[PreferenceLoss, LossDefault] = {
    PreferenceLoss.dpo: LossDefault(0.1, 0.0, DPO_PAPER),
    PreferenceLoss.conservative: LossDefault(0.1, 0.0, DPO_PAPER),
    PreferenceLoss.robust: LossDefault(0.1, 0.0, "arXiv:2403.00409, TRL"),
    PreferenceLoss.normalised: LossDefault(5.0, 0.0, "Tulu 3, arXiv:2411.15124"),
    PreferenceLoss.ipo: LossDefault(0.1, 0.0, "arXiv:2310.12036, TRL"),
    PreferenceLoss.ipo_sum: LossDefault(0.1, 0.0, "arXiv:2310.12036, OpenRLHF"),
    PreferenceLoss.hinge: LossDefault(0.1, 0.0, "TRL"),
    PreferenceLoss.apo_zero: LossDefault(0.1, 0.0, "arXiv:2408.06266, TRL"),
    PreferenceLoss.apo_down: LossDefault(0.1, 0.0, "arXiv:2408.06266, TRL"),
    PreferenceLoss.simpo: LossDefault(2.0, 0.0, "arXiv:2405.14734"),
    PreferenceLoss.cpo: LossDefault(0.1, 1.0, "arXiv:2401.08417, TRL"),
    PreferenceLoss.orpo: LossDefault(0.1, 1.0, "arXiv:2403.07691, TRL"),
    PreferenceLoss.kto: LossDefault(0.1, 0.0, "arXiv:2402.01306, TRL"),
    PreferenceLoss.apo_zero_unpaired: LossDefault(0.1, 0.0, "arXiv:2408.06266, TRL"),
}


@dataclass
class PreferenceConfig:
    """How preferences are learnt."""

    loss: PreferenceLoss = PreferenceLoss.dpo
    """Set by the objective group."""
    beta: float | None = None
    """How much of the loss a log-ratio is; for orpo the weight of the odds. null takes 0.1, for simpo 2, for normalised
    5. Range: 1e-6 to 1000."""
    label_noise: float = 0.0
    """conservative, robust: share of pairs taken to be the other way round. Range: above 0 and below 0.5, else 0."""
    gamma: float = 0.0
    """simpo: how far ahead the chosen answer has to be, on the scale of beta times a mean log-probability; its paper
    takes 0.3 to 0.5 of beta. Range: 0 to 1000."""
    nll_weight: float | None = None
    """Weight of the chosen answer's cross-entropy, which is added and keeps it likely (RPO). null takes 1 for cpo and
    orpo, else 0. Range: 0 to 1e6."""
    nll_over: NllOver = NllOver.answer
    """Which tokens it is of."""
    nll_mean: NllMean = NllMean.tokens
    """What it is a mean over."""
    desirable_weight: float = 1.0
    """kto, apo_zero_unpaired: weight of answers with label true. KTO's paper takes 1 to 4/3 times the number of
    undesirable ones over that of desirable ones. Range: above 0 to 1e6."""
    undesirable_weight: float = 1.0
    """The same of answers with label false. Range: above 0 to 1e6."""

    text_weight: float = 1.0
    """Weight of the cross-entropy of sources without pairs, a mean over their tokens of a step. Range: 0 to 1e6."""

    @property
    def chosen_beta(self) -> float:
        """Return beta as it is, or the loss's own."""
        return LOSS_DEFAULTS[self.loss].beta if self.beta is None else self.beta

    @property
    def chosen_nll_weight(self) -> float:
        """Return nll_weight as it is, or the loss's own."""
        return LOSS_DEFAULTS[self.loss].nll_weight if self.nll_weight is None else self.nll_weight

    @property
    def described(self) -> str:
        """Return what is minimised, as it is told at the start of a run: what was left open with whose choice it is."""
        default = LOSS_DEFAULTS[self.loss]

        def told(name: str, given: float | None, own: float) -> str:
            return f"{name} {own:g} ({default.source})" if given is None else f"{name} {given:g}"

        parts = [told("beta", self.beta, default.beta)]
        if self.chosen_nll_weight:
            weight = told("cross-entropy of chosen answers times", self.nll_weight, default.nll_weight)
            parts.append(f"{weight}, over {self.nll_over.value}, a mean over {self.nll_mean.value}")
        parts += [f"label_noise {self.label_noise:g}"] * (self.loss in NOISY)
        parts += [f"gamma {self.gamma:g}"] * (self.loss is PreferenceLoss.simpo)
        return f"Loss of preferences: {self.loss.value}, {'; '.join(parts)}."

    def told_loss(self, has_text: bool) -> str:
        """Return what `loss` is made of, with its units, as it is told at the start of a run and in its report.

        Args:
            has_text: Whether sources without preferences are learnt beside them.
        """
        part, unit = ("pair_loss", "pair") if self.is_paired else ("answer_loss", "answer")
        parts = [f"{part} (mean of {self.loss.value} over {unit}s, no unit)"]
        if self.chosen_nll_weight:
            mean = "a token" if self.nll_mean is NllMean.tokens else "a token, a mean over answers"
            parts.append(
                f"{self.chosen_nll_weight:g} x nll_chosen (cross-entropy of chosen answers, nats {mean})"
            )
        if has_text and self.text_weight:
            parts.append(
                f"{self.text_weight:g} x the cross-entropy of sources without preferences (nats a token)"
            )
        return f"`loss` is what is minimised: {', plus '.join(parts)}."

    @property
    def needs_reference(self) -> bool:
        """Tell whether the loss compares the model with a reference."""
        return self.loss not in FREE

    @property
    def is_paired(self) -> bool:
        """Tell whether the loss is of pairs, and not of answers with labels."""
        return self.loss not in UNPAIRED
