"""Rules about rounds of answers that the student samples. Pure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from trainer.config.data import Format, Role
from trainer.config.describe import as_word
from trainer.config.distill import OnPolicyConfig
from trainer.config.replay import RatioController, ReplayChoice
from trainer.config.rule import Problem, must
from trainer.config.schema import RunConfig

SECTION = "objective.distill.on_policy"
OFF = f"or {SECTION}.share=0"


def on_policy_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield every broken rule."""
    options = config.objective.distill.on_policy
    if not 0 <= options.share <= 1:
        fix = "Set 1, all of them, or 0 to turn rounds off."
        yield must(f"{SECTION}.share", "in [0, 1]: a share of the prompts", options.share, fix)
        return
    if not options.is_on:
        for field in dataclasses.fields(OnPolicyConfig):
            value = getattr(options, field.name)
            if value != field.default:
                rule = f"{as_word(field.default)} with {SECTION}.share=0, where nothing is sampled"
                yield must(f"{SECTION}.{field.name}", rule, value, f"Set {SECTION}.share=1, or remove it.")
        return
    yield from _number_problems(config, options)
    yield from _untaken(config)
    for name, source in config.data.sources.items():
        is_learnt_whole = source.format is Format.ids and source.columns.loss_mask is None
        if source.role is Role.target and (source.format is Format.text or is_learnt_whole):
            rule = (
                f"chat or completion, or ids with columns.loss_mask, with {SECTION}.share={options.share:g}: where all "
                "is learnt there is no prompt to answer"
            )
            fix = f"Give rows with a prompt and an answer, set role=replay for this source, {OFF}."
            yield must(f"data.sources.{name}.format", rule, source.format.value, fix)


def _number_problems(config: RunConfig, options: OnPolicyConfig) -> Iterator[Problem]:
    for name, usual in (("steps_per_round", 1), ("batch_size", 16)):
        if getattr(options, name) < 1:
            yield must(f"{SECTION}.{name}", "at least 1", getattr(options, name), f"Set {usual}.")
    longest, seq_len = options.max_new_tokens, config.data.seq_len
    if not 1 <= longest < seq_len:
        rule = f"at least 1 and below data.seq_len={seq_len}, which holds prompt and answer"
        fix = f"Set {SECTION}.max_new_tokens={max(seq_len // 2, 1)}, or raise data.seq_len."
        yield must(f"{SECTION}.max_new_tokens", rule, longest, fix)
    if not 0 < options.temperature < math.inf:
        yield must(f"{SECTION}.temperature", "a finite number above 0", options.temperature, "Set 1.")


def _untaken(config: RunConfig) -> Iterator[Problem]:
    """Yield what does not go together with rounds."""
    taken = f"with {SECTION}.share={config.objective.distill.on_policy.share:g}"
    if config.objective.distill.cached:
        rule = f"false {taken}: nobody knows before the run what the student will say"
        yield must("objective.distill.cached", rule, True, f"Set objective.distill.cached=false, {OFF}.")
    if config.replay.controller is not RatioController.none:
        rule = f"none {taken}: a round is sampled for steps whose packs are planned"
        value = config.replay.controller.value
        yield must("replay.controller", rule, value, f"Set replay.controller=none, {OFF}.")
    if config.replay.choice is not ReplayChoice.uniform:
        rule = f"uniform {taken}: a round is sampled for steps whose packs are planned"
        yield must("replay.choice", rule, config.replay.choice.value, f"Set replay.choice=uniform, {OFF}.")
    if config.tune.is_virtual:
        rule = f"one without virtual tokens {taken}"
        yield must("tune.method", rule, config.tune.method.value, f"Set tune=lora, {OFF}.")
    if config.zero.expert_parallel > 1:
        yield must("zero.expert_parallel", f"1 {taken}", config.zero.expert_parallel, f"Set it to 1, {OFF}.")
