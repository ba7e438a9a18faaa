"""Rules about what trains. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from trainer.config.model import WITH_MASK
from trainer.config.optim import Offload
from trainer.config.rule import Problem, must
from trainer.config.schema import RunConfig
from trainer.config.start import start_problems
from trainer.config.tune import ALL_LINEAR, EXPERTS, Init, Quantise, TuneConfig, TuneMethod


def tune_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield every broken rule."""
    tune = config.tune
    match tune.method:
        case TuneMethod.lora:
            yield from _lora_problems(tune)
        case TuneMethod.ia3:
            yield from _ia3_problems(tune)
        case TuneMethod.prefix | TuneMethod.prompt:
            yield from _virtual_problems(config)
        case TuneMethod.freeze:
            yield from _freeze_problems(tune)
    yield from _init_problems(config)
    yield from start_problems(config)
    rate = config.train.router_bias_rate
    if not (math.isfinite(rate) and rate >= 0):
        yield must("train.router_bias_rate", "0 or more", rate, "Set 0.001, or 0 to leave the bias as it is.")
    elif rate and tune.method is not TuneMethod.full:
        rule = f"0 with tune.method={tune.method.value}, which does not save the bias"
        yield must("train.router_bias_rate", rule, rate, "Set it to 0, or set tune=full.")
    if tune.quantise is not Quantise.none:
        yield from _quantise_problems(config)
    if tune.method is not TuneMethod.full and config.replay.kl.beta and config.zero.stage == 0:
        fix = "Set zero=zero1."
        yield must("zero.stage", "1 or more for replay.kl with an adapter", 0, fix)


def _ia3_problems(tune: TuneConfig) -> Iterator[Problem]:
    strangers = [name for name in tune.feedforward if name not in tune.target]
    if {ALL_LINEAR, EXPERTS} & set(tune.target) or tune.target_pattern is not None or not tune.target:
        fix = "Set tune.target=[k_proj,v_proj,down_proj]."
        yield must("tune.target", "a list of module names for tune.method=ia3", tune.target, fix)
    elif strangers:
        fix = f"Set tune.feedforward=[{tune.target[-1]}]."
        yield must("tune.feedforward", "among tune.target", tune.feedforward, fix)


def _freeze_problems(tune: TuneConfig) -> Iterator[Problem]:
    if not tune.train and tune.last_layers < 1:
        fix = "Set tune.last_layers=2, or tune.train=[norm]."
        yield must("tune.train", "a pattern for tune.method=freeze", tune.train, fix)
    if tune.last_layers < 0:
        yield must("tune.last_layers", "0 or a count", tune.last_layers, "Set tune.last_layers=2.")
    for pattern in tune.train:
        yield from _pattern_problems("tune.train", pattern)


def _quantise_problems(config: RunConfig) -> Iterator[Problem]:
    tune, key, off = config.tune, "tune.quantise", "tune.quantise=none"
    if tune.method not in (TuneMethod.lora, TuneMethod.ia3):
        fix = f"Set tune=qlora, or {off}. (Weights in 4 bits are frozen.)"
        yield must(key, f"none with tune.method={tune.method.value}", tune.quantise.value, fix)
    if tune.init is Init.pissa:
        fix = f"Set tune.init=default, or {off}. (Its SVD is of whole weights.)"
        yield must("tune.init", "default or gaussian with tune.quantise=nf4", tune.init.value, fix)
    if tune.dora and config.zero.stage == 3:
        fix = f"Set zero=zero2, or {off}. (DoRA's norms of packed weights that are sharded were never tried.)"
        yield must("tune.dora", "false with tune.quantise=nf4 and zero.stage=3", True, fix)
    if tune.modules_to_save:
        fix = f"Leave it out, or {off}. (Modules trained whole beside packed ones were never tried.)"
        yield must("tune.modules_to_save", "empty with tune.quantise=nf4", tune.modules_to_save, fix)
    if config.model.new_tokens:
        fix = f"Leave it out, or {off}. (Embeddings are not resized beside packed weights.)"
        yield must("model.new_tokens", "empty with tune.quantise=nf4", config.model.new_tokens, fix)
    if config.zero.offload_param is Offload.cpu:
        fix = f"Set zero.offload_param=none, or {off}. (Packed weights were never tried in host memory.)"
        yield must("zero.offload_param", "none with tune.quantise=nf4", "cpu", fix)


def _virtual_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield what virtual tokens cannot go with."""
    tune, asked = config.tune, config.model.attention
    if tune.virtual_tokens < 1:
        yield must("tune.virtual_tokens", "at least 1", tune.virtual_tokens, "Set tune.virtual_tokens=20.")
    if asked not in WITH_MASK:
        fix = (
            "Set model.attention=sdpa. (Documents of a pack share the virtual tokens: a mask can say that, the "
            "boundaries that flash attention takes cannot.)"
        )
        yield must(
            "model.attention", f"auto, sdpa or eager with tune.method={tune.method.value}", asked.value, fix
        )
    what = "Virtual tokens are no change of the weights, so they cannot be added into them"
    if config.export.merge:
        fix = f"Leave it out: the adapter is exported. ({what}.)"
        yield must("export.merge", f"false with tune.method={tune.method.value}", True, fix)
    if config.export.alpha != 1 or config.export.interpolate is not None:
        key = "export.alpha" if config.export.alpha != 1 else "export.interpolate"
        value = config.export.alpha if config.export.alpha != 1 else config.export.interpolate
        fix = f"Leave it out. ({what}, and there is nothing between.)"
        yield must(key, f"left out with tune.method={tune.method.value}", value, fix)


INITS = {
    TuneMethod.lora: (Init.default, Init.gaussian, Init.pissa),
    TuneMethod.prefix: (Init.default, Init.zero),
    TuneMethod.prompt: (Init.default, Init.gaussian),
}


def _init_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield what the initialisation and modules trained whole cannot go with."""
    tune = config.tune
    known = INITS.get(tune.method, (Init.default,))
    if tune.init not in known:
        words = " or ".join(init.value for init in known)
        rule = f"{words} for tune.method={tune.method.value}"
        yield must("tune.init", rule, tune.init.value, "Set tune.init=default.")
        return
    if tune.init is Init.pissa:
        if config.zero.stage == 3:
            fix = "Set zero=zero2, or tune.init=default. (The SVD needs every weight whole on each rank.)"
            yield must("zero.stage", "0, 1 or 2 with tune.init=pissa", 3, fix)
        if tune.dora:
            yield must("tune.dora", "false with tune.init=pissa", True, "Set tune.init=default.")
    if tune.modules_to_save and tune.method not in (TuneMethod.lora, TuneMethod.ia3):
        fix = "Leave it out; tune=freeze has tune.train."
        rule = f"empty for tune.method={tune.method.value}"
        yield must("tune.modules_to_save", rule, tune.modules_to_save, fix)
    yield from _new_token_problems(config)
    others = {
        "tune.init=pissa": tune.init is Init.pissa,
        "tune.modules_to_save": bool(tune.modules_to_save),
        "model.new_tokens": bool(config.model.new_tokens),
    }
    key = next((name for name, is_given in others.items() if is_given), None)
    if config.replay.kl.beta and key is not None:
        fix = "Set replay.kl.beta=0. (The base is asked as the model with its adapter off, which is another then.)"
        yield must("replay.kl.beta", f"0 with {key}", config.replay.kl.beta, fix)


def _new_token_problems(config: RunConfig) -> Iterator[Problem]:
    given, export = config.model.new_tokens, config.export
    if not given:
        return
    if config.tune.method is not TuneMethod.lora:
        fix = "Set tune=lora, or add the tokens to the base model yourself."
        yield must("model.new_tokens", f"empty for tune.method={config.tune.method.value}", given, fix)
    if export.alpha != 1 or export.interpolate is not None:
        key = "export.alpha" if export.alpha != 1 else "export.interpolate"
        value = export.alpha if export.alpha != 1 else export.interpolate
        yield must(key, "left out with model.new_tokens", value, "The base has no such rows; leave it out.")


def _lora_problems(tune: TuneConfig) -> Iterator[Problem]:
    if tune.r < 1:
        yield must("tune.r", "at least 1", tune.r, "Set tune.r=16.")
    if tune.alpha is not None and not (math.isfinite(tune.alpha) and tune.alpha > 0):
        yield must(
            "tune.alpha", "above 0", tune.alpha, f"Set tune.alpha={2 * max(tune.r, 1)}, or leave it out."
        )
    if not 0 <= tune.dropout < 1:
        yield must("tune.dropout", "in [0, 1)", tune.dropout, "Set tune.dropout=0.")
    if not (math.isfinite(tune.lora_plus_ratio) and tune.lora_plus_ratio >= 1):
        yield must(
            "tune.lora_plus_ratio", "at least 1", tune.lora_plus_ratio, "Set tune.lora_plus_ratio=16, or 1."
        )
    if not tune.target and tune.target_pattern is None:
        yield must("tune.target", "a list of modules", tune.target, f"Set tune.target=[{ALL_LINEAR}].")
    if ALL_LINEAR in tune.target and set(tune.target) - {ALL_LINEAR, EXPERTS}:
        rule = f"{ALL_LINEAR} alone, or with {EXPERTS}, or names"
        yield must("tune.target", rule, tune.target, f"Set tune.target=[{ALL_LINEAR}].")
    if tune.target_pattern is not None:
        yield from _pattern_problems("tune.target_pattern", tune.target_pattern)
    elif EXPERTS in tune.target:
        yield from _expert_problems(tune)


def _expert_problems(tune: TuneConfig) -> Iterator[Problem]:
    """Yield what factors of experts cannot go with: peft adds them to the weights, not to what goes through them."""
    fix = f"Or leave {EXPERTS} out of tune.target."
    rule = f"with {EXPERTS} in tune.target"
    if tune.dropout:
        yield must("tune.dropout", f"0 {rule}", tune.dropout, f"Set tune.dropout=0. {fix}")
    if tune.dora:
        yield must("tune.dora", f"false {rule}", True, f"Set tune.dora=false. {fix}")
    if tune.init is Init.pissa:
        yield must(
            "tune.init", f"default or gaussian {rule}", tune.init.value, f"Set tune.init=default. {fix}"
        )


def _pattern_problems(key: str, pattern: str) -> Iterator[Problem]:
    try:
        re.compile(pattern)
    except re.error as error:
        yield must(key, f"a regular expression ({error})", pattern, "Mend it, or quote it.")
