"""Rules about learning from a teacher. Pure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from enum import Enum

from trainer.config.check_on_policy import on_policy_problems
from trainer.config.describe import as_word
from trainer.config.distill import DistillConfig, DivergenceKind
from trainer.config.objective import ObjectiveKind
from trainer.config.rule import Problem, must
from trainer.config.schema import RunConfig
from trainer.config.teacher import KEY, distilled

SECTION = "objective.distill"


def distill_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield every broken rule."""
    options = config.objective.distill
    if config.objective.kind is not ObjectiveKind.distill:
        yield from _unread_problems(config)
        return
    if not options.teacher:
        fix = f"Set {KEY}=FOLDER, or the name of a larger model with the same tokenizer."
        yield must(KEY, "a model with objective=distill", options.teacher, fix)
    if options.top < 1:
        yield must(f"{SECTION}.top", "at least 1", options.top, "Set 64.")
    if not 0 < options.temperature < math.inf:
        yield must(f"{SECTION}.temperature", "a finite number above 0", options.temperature, "Set 1.")
    yield from _mixture_problems(options)
    yield from _weight_problems(options)
    yield from on_policy_problems(config)
    if config.data.sources and not distilled(config.data.sources):
        name = next(iter(config.data.sources))
        rule = "target for some source with objective=distill, which learns those from its teacher"
        yield must(f"data.sources.{name}.role", rule, config.data.sources[name].role.value, "Leave it out.")


def _unread_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield options that are given where nothing is distilled."""
    given, usual = config.objective.distill, DistillConfig()
    for section, name in ((given, ""), (given.on_policy, "on_policy.")):
        for field in dataclasses.fields(section):
            value = getattr(section, field.name)
            default = getattr(usual.on_policy if name else usual, field.name)
            if value != default and not dataclasses.is_dataclass(value):
                rule = f"{as_word(default)} with {config.objective.named}, which does not read it"
                shown = value.value if isinstance(value, Enum) else value
                yield must(
                    f"{SECTION}.{name}{field.name}", rule, shown, "Set objective=distill, or remove it."
                )


def _mixture_problems(options: DistillConfig) -> Iterator[Problem]:
    if not 0 <= options.jsd_beta <= 1:
        fix = "Set 0.5, half of each."
        yield must(f"{SECTION}.jsd_beta", "in [0, 1]: a share of the mixture", options.jsd_beta, fix)
    elif options.divergence is not DivergenceKind.jsd and options.jsd_beta != DistillConfig.jsd_beta:
        rule = f"left out with divergence={options.divergence.value}, which has no mixture"
        yield must(
            f"{SECTION}.jsd_beta", rule, options.jsd_beta, f"Set {SECTION}.divergence=jsd, or remove it."
        )


def _weight_problems(options: DistillConfig) -> Iterator[Problem]:
    if not 0 < options.weight < math.inf:
        fix = "Set 1, or objective=causal_lm to learn without a teacher."
        yield must(f"{SECTION}.weight", "a finite number above 0", options.weight, fix)
    if not 0 <= options.cross_entropy < math.inf:
        yield must(
            f"{SECTION}.cross_entropy",
            "0 (off) or a finite number above it",
            options.cross_entropy,
            "Set 0.5.",
        )
