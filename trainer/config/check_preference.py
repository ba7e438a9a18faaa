"""Rules about the losses of preferences. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.preference import LOSS_DEFAULTS, NOISY, NllMean, NllOver, PreferenceConfig, PreferenceLoss
from trainer.config.rule import Problem, must

KEY = "objective.preference"
LEAST_BETA, MOST_BETA = 1e-6, 1e3
"""At 1000 a thousandth of a nat between two answers is all of a loss, and float32 rounds a sum of 1,000 nats by a
sixteenth of that; at a millionth ipo asks for 500,000 nats between them. Beyond, squares and steps leave float32."""
MOST_WEIGHT = 1e6
"""A weight is at most a number of undesirable answers over that of desirable ones; 1e38 leaves float32."""


def preference_problems(options: PreferenceConfig) -> Iterator[Problem]:
    """Yield every broken rule, and every option that the loss does not read."""
    loss, default = options.loss, LOSS_DEFAULTS[options.loss]
    if options.beta is not None and not LEAST_BETA <= options.beta <= MOST_BETA:
        rule = f"a number from {LEAST_BETA:g} to {MOST_BETA:g}, beyond which losses leave float32, or null"
        fix = f"Leave it out for {default.beta:g} ({default.source})."
        yield must(f"{KEY}.beta", rule, options.beta, fix)
    yield from _noise_problems(options)
    if loss is PreferenceLoss.simpo:
        if not 0 <= options.gamma <= MOST_BETA:
            yield must(f"{KEY}.gamma", f"in [0, {MOST_BETA:g}]", options.gamma, "Set 0.5 of beta.")
    elif options.gamma != 0:
        rule = f"0 for loss={loss.value}, which does not read it"
        yield must(f"{KEY}.gamma", rule, options.gamma, _chosen_by_option(loss))
    yield from _nll_problems(options)
    if not 0 <= options.text_weight <= MOST_WEIGHT:
        yield must(f"{KEY}.text_weight", f"in [0, {MOST_WEIGHT:g}]", options.text_weight, "1 is usual.")
    for name in ("desirable_weight", "undesirable_weight"):
        weight = getattr(options, name)
        if options.is_paired and weight != 1:
            yield must(
                f"{KEY}.{name}", f"1 for loss={loss.value}, which does not read it", weight, "Remove it."
            )
        elif not 0 < weight <= MOST_WEIGHT:
            rule = f"above 0 and at most {MOST_WEIGHT:g}"
            yield must(f"{KEY}.{name}", rule, weight, "Take rows of a label out to leave them out.")


def _noise_problems(options: PreferenceConfig) -> Iterator[Problem]:
    key, loss, noise = f"{KEY}.label_noise", options.loss, options.label_noise
    if loss in NOISY and not 0 < noise < 0.5:
        rule = f"above 0 and below 0.5 for loss={loss.value}"
        yield must(key, rule, noise, "Set the share of pairs that are the wrong way round, such as 0.1.")
    elif loss not in NOISY and noise != 0:
        rule = f"0 for loss={loss.value}, which does not read it"
        fix = f"{_chosen_by_option(loss)} objective=conservative and robust read it."
        yield must(key, rule, noise, fix)


def _nll_problems(options: PreferenceConfig) -> Iterator[Problem]:
    loss, weight = options.loss, options.nll_weight
    if not options.chosen_nll_weight:
        for name, usual in (("nll_over", NllOver.answer), ("nll_mean", NllMean.tokens)):
            given = getattr(options, name)
            if given is not usual:
                rule = f"{usual.value} for loss={loss.value} with no cross-entropy beside it, of which it would be"
                yield must(f"{KEY}.{name}", rule, given.value, f"Set {KEY}.nll_weight=1, or remove it.")
    if weight is None:
        return
    if not 0 <= weight <= MOST_WEIGHT:
        yield must(f"{KEY}.nll_weight", f"in [0, {MOST_WEIGHT:g}], or null", weight, "1 is usual.")
    elif weight and not options.is_paired:
        rule = f"0 for loss={loss.value}, whose answers are not all to be learnt"
        yield must(f"{KEY}.nll_weight", rule, weight, _chosen_by_option(loss))


def _chosen_by_option(loss: PreferenceLoss) -> str:
    """Return the fix of an option that may be another loss's own, as of `objective=simpo` with its loss overridden."""
    return f"Remove it, or choose the loss by objective={loss.value} alone."
