"""Rules about what trains. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from trainer.config.optim import Offload
from trainer.config.rule import must
from trainer.config.schema import RunConfig
from trainer.config.tune import ALL_LINEAR, Quantise, TuneConfig, TuneMethod


def tune_problems(config: RunConfig) -> Iterator[str]:
    """Yield a sentence for every broken rule."""
    tune = config.tune
    if tune.method is TuneMethod.lora:
        yield from _lora_problems(tune)
        if tune.dora and config.zero.stage == 3:
            fix = "Set zero=zero2, or tune=rslora. (peft's DoRA reads whole base weights outside of their layer.)"
            yield must("tune.dora", "false with zero.stage=3", True, fix)
    if tune.quantise is not Quantise.none:
        yield from _quantise_problems(config)
    if tune.method is TuneMethod.ia3:
        strangers = [name for name in tune.feedforward if name not in tune.target]
        if ALL_LINEAR in tune.target or tune.target_pattern is not None or not tune.target:
            fix = "Set tune.target=[k_proj,v_proj,down_proj]."
            yield must("tune.target", "a list of module names for tune.method=ia3", tune.target, fix)
        elif strangers:
            fix = f"Set tune.feedforward=[{tune.target[-1]}]."
            yield must("tune.feedforward", "among tune.target", tune.feedforward, fix)
    if tune.method is TuneMethod.freeze:
        if not tune.train and tune.last_layers < 1:
            fix = "Set tune.last_layers=2, or tune.train=[norm]."
            yield must("tune.train", "a pattern for tune.method=freeze", tune.train, fix)
        if tune.last_layers < 0:
            yield must("tune.last_layers", "0 or a count", tune.last_layers, "Set tune.last_layers=2.")
        for pattern in tune.train:
            yield from _pattern_problems("tune.train", pattern)
    if tune.method is not TuneMethod.full and config.replay.kl.beta and config.zero.stage == 0:
        fix = "Set zero=zero1."
        yield must("zero.stage", "1 or more for replay.kl with an adapter", 0, fix)


def _quantise_problems(config: RunConfig) -> Iterator[str]:
    tune, key, off = config.tune, "tune.quantise", "tune.quantise=none"
    if tune.method not in (TuneMethod.lora, TuneMethod.ia3):
        fix = f"Set tune=qlora, or {off}. (Weights in 4 bits are frozen.)"
        yield must(key, f"none with tune.method={tune.method.value}", tune.quantise.value, fix)
    if tune.init.value not in ("default", "gaussian"):
        fix = f"Set tune.init=default, or {off}. (It would be worked out of whole weights.)"
        yield must("tune.init", "default or gaussian with tune.quantise=nf4", tune.init.value, fix)
    if config.zero.offload_param is Offload.cpu:
        fix = f"Set zero.offload_param=none, or {off}. (Packed weights were never tried in host memory.)"
        yield must("zero.offload_param", "none with tune.quantise=nf4", "cpu", fix)


def _lora_problems(tune: TuneConfig) -> Iterator[str]:
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
    if ALL_LINEAR in tune.target and len(tune.target) > 1:
        yield must(
            "tune.target", f"{ALL_LINEAR} alone or names", tune.target, f"Set tune.target=[{ALL_LINEAR}]."
        )
    if tune.target_pattern is not None:
        yield from _pattern_problems("tune.target_pattern", tune.target_pattern)


def _pattern_problems(key: str, pattern: str) -> Iterator[str]:
    try:
        re.compile(pattern)
    except re.error as error:
        yield must(key, f"a regular expression ({error})", pattern, "Mend it, or quote it.")
