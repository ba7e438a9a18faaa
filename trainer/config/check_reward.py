"""Rules about reward models. Pure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from trainer.config.data import Format
from trainer.config.describe import as_word
from trainer.config.model import ModelHead
from trainer.config.objective import ObjectiveKind
from trainer.config.reward import RewardConfig
from trainer.config.rule import Problem, must
from trainer.config.schema import RunConfig
from trainer.config.train import GgufType
from trainer.config.tune import Quantise

WHY = "A reward model has no output layer of a language model."


def reward_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield every broken rule."""
    options, key = config.objective.reward, "objective.reward.centre"
    if config.objective.kind is not ObjectiveKind.reward:
        for field in dataclasses.fields(RewardConfig):
            value, usual = getattr(options, field.name), getattr(RewardConfig, field.name)
            if value != usual:
                rule = f"{as_word(usual)} with {config.objective.named}, which does not read it"
                yield must(
                    f"objective.reward.{field.name}", rule, value, "Set objective=reward, or remove it."
                )
        if config.model.head is ModelHead.score:
            rule = f"language with {config.objective.named}"
            yield must("model.head", rule, config.model.head.value, "Set objective=reward, or leave it out.")
        return
    if not (options.centre >= 0 and math.isfinite(options.centre)):
        yield must(key, "a number of at least 0", options.centre, "0.01 is usual.")
    if config.model.head is not ModelHead.score:
        yield must(
            "model.head",
            "score with objective=reward",
            config.model.head.value,
            "Leave it to objective=reward.",
        )
    yield from _source_problems(config)
    yield from _untaken(config)


def _source_problems(config: RunConfig) -> Iterator[Problem]:
    for name, source in config.data.sources.items():
        if source.format is not Format.preference:
            rule = "preference with objective=reward, which learns scores from pairs and nothing else"
            fix = f"Set data=preference where rows hold prompt, chosen and rejected, or leave {name} out."
            yield must(f"data.sources.{name}.format", rule, source.format.value, fix)


def _untaken(config: RunConfig) -> Iterator[Problem]:
    """Yield what asks a language model's output layer, or was never made to work without one."""
    evaluate, tune, export, taken = config.evaluate, config.tune, config.export, "with objective=reward"
    leave = f"Leave it out. {WHY}"
    for key, value in (
        ("evaluate.forgetting", evaluate.forgetting),
        ("evaluate.during.kl", evaluate.during.kl),
    ):
        if value:
            yield must(key, f"false {taken}", value, leave)
    for key, names in (
        ("evaluate.tasks.names", evaluate.tasks.names),
        ("evaluate.asked", evaluate.asked.names),
        ("evaluate.during.tasks", evaluate.during.tasks),
        ("gate.sets", list(config.gate.sets)),
        ("gate.tasks", list(config.gate.tasks)),
    ):
        if names:
            yield must(key, f"empty {taken}", names, leave)
    if evaluate.during.has_samples:
        key = "num" if evaluate.during.samples.num else "file"
        value = getattr(evaluate.during.samples, key)
        yield must(f"evaluate.during.samples.{key}", f"left out {taken}", value, leave)
    if evaluate.recovery_steps:
        yield must("evaluate.recovery_steps", f"0 {taken}", evaluate.recovery_steps, leave)
    if tune.is_virtual:
        fix = "Set tune=lora. (A folder of virtual tokens with a score beside them was never tried.)"
        yield must("tune.method", f"one without virtual tokens {taken}", tune.method.value, fix)
    if tune.quantise is not Quantise.none:
        fix = "Set tune=lora. (Modules trained whole beside packed ones were never tried.)"
        yield must("tune.quantise", f"none {taken}", tune.quantise.value, fix)
    if config.model.new_tokens:
        fix = "Add the tokens to the base model yourself."
        yield must("model.new_tokens", f"empty {taken}", config.model.new_tokens, fix)
    if export.alpha != 1 or export.interpolate is not None:
        key = "alpha" if export.alpha != 1 else "interpolate"
        fix = "Leave it out: the base has no score to blend with."
        yield must(f"export.{key}", f"left out {taken}", getattr(export, key), fix)
    if export.gguf is not GgufType.none:
        yield must("export.gguf", f"none {taken}", export.gguf.value, "Leave it out: it was never tried.")
