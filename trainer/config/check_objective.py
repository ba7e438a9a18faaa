"""Rules about what a run minimises. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from enum import Enum

from trainer.config.check_distill import distill_problems
from trainer.config.check_preference import preference_problems
from trainer.config.check_reward import reward_problems
from trainer.config.check_values import value_problems
from trainer.config.data import Format, Role, SourceConfig
from trainer.config.describe import as_word
from trainer.config.objective import TAKES_TEACHER, ObjectiveConfig, ObjectiveKind
from trainer.config.preference import NOISY, UNPAIRED, PreferenceConfig, PreferenceLoss
from trainer.config.rule import Problem, must
from trainer.config.schema import RunConfig


def objective_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield what an objective cannot do, and numbers of tokens that it does not read or misses."""
    objective = config.objective
    yield from value_problems(config.data, objective.values)
    wrong = list(preference_problems(objective.preference))
    yield from wrong
    if objective.kind is not ObjectiveKind.preference:
        told = {found.key for found in wrong}
        yield from (found for found in _unread_problems(objective) if found.key not in told)
    if objective.kind is not ObjectiveKind.reward:
        yield from _fed_problems(config)
    yield from reward_problems(config)
    yield from distill_problems(config)
    if config.replay.kl.beta and objective.kind not in TAKES_TEACHER:
        yield must(
            "replay.kl.beta",
            f"0 with {objective.named}",
            config.replay.kl.beta,
            "Set replay.kl.beta=0, or objective=causal_lm.",
        )


def _unread_problems(objective: ObjectiveConfig) -> Iterator[Problem]:
    """Yield options of losses of preferences that are given where no such loss is."""
    given, usual = objective.preference, PreferenceConfig()
    for field in dataclasses.fields(PreferenceConfig):
        value, default = getattr(given, field.name), getattr(usual, field.name)
        if value != default:
            rule = f"{as_word(default)} with {objective.named}, which does not read it"
            shown = value.value if isinstance(value, Enum) else value
            fix = f"Set objective={given.loss.value}, or remove it."
            yield must(f"objective.preference.{field.name}", rule, shown, fix)


def _fed_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield sources whose rows the objective would misread: of a pair it would learn the rejected answer too."""
    objective, sources = config.objective, config.data.sources
    is_preference = objective.kind is ObjectiveKind.preference
    fed = Format.preference if objective.preference.is_paired else Format.unpaired
    misread = {
        name: source
        for name, source in sources.items()
        if source.holds_preferences and not (is_preference and source.format is fed)
    }
    for name, source in misread.items():
        formats = f"chat, ids or {fed.value}" if is_preference else "chat or ids"
        yield must(
            f"data.sources.{name}.format",
            f"text, completion, {formats} for {objective.named}",
            source.format.value,
            _taught(source),
        )
    targets = {name: source for name, source in sources.items() if source.role is Role.target}
    if is_preference and targets and all(source.format is not fed for source in targets.values()):
        if any(name in misread for name in targets):
            return  # told already
        name, source = next(iter(targets.items()))
        rule = f"{fed.value} in some source with role=target for {objective.named}"
        rows = "prompt, chosen and rejected" if fed is Format.preference else "prompt, completion and label"
        fix = f"Set data={fed.value} where rows hold {rows}, or objective=causal_lm."
        yield must(f"data.sources.{name}.format", rule, source.format.value, fix)


def _taught(source: SourceConfig) -> str:
    """Return what learns from a source of preferences, and how its good answers alone are learnt."""
    if source.format is Format.preference:
        options = [loss.value for loss in PreferenceLoss if loss not in UNPAIRED | NOISY]
        return (
            f"To learn from pairs set objective=dpo ({', '.join(options[1:])} and others read them too); to learn the "
            f"chosen answers alone, format=completion with columns.completion={source.columns.chosen} and "
            f"columns.ignore=[{source.columns.rejected}]."
        )
    others = " or ".join(sorted(loss.value for loss in UNPAIRED))
    return (
        f"To learn from answers with labels set objective=kto ({others}); to learn good answers alone, give a file of "
        "them as format=completion."
    )
