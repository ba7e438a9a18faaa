"""The adapter that a run goes on training: what its folder says of it, which takes the place of options left open.

A folder is peft's: adapter_config.json beside adapter_model.safetensors. A run directory of ours has the first too, and
its factors in checkpoints. Loads no torch.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.rule import Problem, must, said
from trainer.config.schema import RunConfig
from trainer.config.tune import Init, TuneConfig, TuneMethod
from trainer.errors import ConfigError

KEY = "tune.start"
DESCRIPTION = "adapter_config.json"
FACTORS = "adapter_model.safetensors"
FROZEN = "config.yaml"
CHECKPOINTS = "checkpoints"
COPY = "start_adapter"
"""Folder of a run directory with the adapter that the run began with: the one that was named may change or go."""
TAKEN = ("r", "alpha", "rslora", "dora", "target")
"""Options of `tune` that are the adapter's own."""
_NOT_FOR_US = {
    "rank_pattern": "ranks that differ by layer",
    "alpha_pattern": "alphas that differ by layer",
    "fan_in_fan_out": "transposed weights",
    "lora_bias": "biases of its factors",
    "modules_to_save": "modules that trained whole",
    "trainable_token_indices": "rows of embeddings",
    "alora_invocation_tokens": "tokens that switch it on",
    "use_qalora": "factors of groups (QALoRA)",
    "use_bdlora": "factors in blocks",
    "arrow_config": "a router of adapters",
    "megatron_config": "Megatron's layers",
}
"""Keys of peft's description that mean more than two factors and a scale beside a layer."""


@dataclass(frozen=True, slots=True)
class StartOptions:
    """What the description of an adapter says in the words of `tune`."""

    r: int
    alpha: float
    rslora: bool
    dora: bool
    target: list[str]
    """Last words of the names of its layers, sorted."""


def start_place(config: RunConfig, goes_on: bool) -> Path | None:
    """Return the folder that a run's first adapter is read from: the run's own copy once it has saved.

    Args:
        goes_on: What the run directory holds is gone on from or measured.
    """
    if config.tune.start is None:
        return None
    copy = Path(config.run_dir) / COPY
    has_saved = any((Path(config.run_dir) / CHECKPOINTS).glob("step-*"))
    is_kept = has_saved and (copy / DESCRIPTION).is_file()
    given = Path(config.tune.start)
    return copy if is_kept and (goes_on or not given.exists()) else given


def with_start(config: RunConfig, typed: Collection[str]) -> RunConfig:
    """Return the configuration with the adapter's own options where none were given; unchanged where it cannot be read.

    Args:
        typed: Keys that a person gave, which stay and are refused where they are others.
    """
    place = start_place(config, config.checkpoint.resume)
    if place is None or config.tune.method is not TuneMethod.lora:
        return config
    try:
        found = start_options(place)
    except ConfigError:  # told by start_problems
        return config
    usual = TuneConfig()
    left = {
        key: getattr(found, key)
        for key in TAKEN
        if f"tune.{key}" not in typed and getattr(config.tune, key) == getattr(usual, key)
    }
    return dataclasses.replace(config, tune=dataclasses.replace(config.tune, **left))


def start_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield what an adapter to go on from cannot go with, and options that are not its own."""
    tune = config.tune
    place = start_place(config, config.checkpoint.resume)
    if place is None:
        return
    if tune.method is not TuneMethod.lora:
        fix = (
            "Set tune=lora to go on with the adapter; to train all weights, write it and its base as one (palimpsest "
            "export ... export.merge=true) and give that folder as model.path."
        )
        yield must(KEY, f"null with tune.method={tune.method.value}", tune.start, fix)
        return
    try:
        found = start_options(place)
    except ConfigError as error:
        yield said(KEY, str(error))
        return
    for key in TAKEN:
        given, own = getattr(tune, key), getattr(found, key)
        given = sorted(given) if key == "target" else tune.scale_alpha if key == "alpha" else given
        if given != own:
            rule = f"{own} with this tune.start, whose own it is"
            yield must(f"tune.{key}", rule, given, "Leave it out.")
    others: dict[str, tuple[object, object]] = {
        "tune.target_pattern": (tune.target_pattern, None),
        "tune.init": (tune.init.value, Init.default.value),
        "tune.modules_to_save": (tune.modules_to_save, []),
        "model.new_tokens": (config.model.new_tokens, []),
    }
    for key, (value, none) in others.items():
        if value != none:
            shown = "null" if none is None else none or "empty"
            yield must(
                key, f"{shown} with tune.start", value, "Leave it out: the adapter is as it was saved."
            )


def start_options(place: Path) -> StartOptions:
    """Return what a folder with an adapter, or a run directory, says of it.

    Raises:
        ConfigError: It is no adapter, or one with more than factors beside linear layers.
    """
    path = place / DESCRIPTION
    if not path.is_file():
        raise ConfigError(_no_adapter(place))
    described = _read(path)
    kind = described.get("peft_type")
    if kind != "LORA":
        raise ConfigError(
            start_refused(place, f"a LoRA adapter, but {DESCRIPTION} says {kind}", "Train that anew.")
        )
    extra = next((words for key, words in _NOT_FOR_US.items() if described.get(key)), None)
    if described.get("bias", "none") != "none":
        extra = "biases that trained"
    if extra is not None:
        fix = "Write it into its base (merge it) and give that as model.path."
        raise ConfigError(start_refused(place, f"factors beside linear layers alone, but has {extra}", fix))
    try:
        options = StartOptions(
            r=int(described["r"]),
            alpha=float(described["lora_alpha"]),
            rslora=bool(described.get("use_rslora")),
            dora=bool(described.get("use_dora")),
            target=_words(place, described),
        )
    except (KeyError, TypeError, ValueError) as error:
        fix = "Get that file again."
        raise ConfigError(
            start_refused(place, f"an adapter, but {DESCRIPTION} has no usable {error}", fix)
        ) from error
    return _whole(place, described, options)


def _whole(place: Path, described: Mapping[str, Any], options: StartOptions) -> StartOptions:
    """Return the options of what stands beside the whole base: of PiSSA of ours twice the rank, else the same."""
    way = described.get("init_lora_weights", True)
    if not isinstance(way, str) or way.lower() in ("gaussian", "orthogonal"):
        return options
    if way == "pissa" and (place / FROZEN).is_file():
        root = math.sqrt(options.r) if options.rslora else options.r
        return dataclasses.replace(
            options, r=2 * options.r, alpha=options.alpha / root * 2 * options.r, rslora=False
        )
    rule = f"factors beside the base as it is, but was begun by {way}, which moves the base"
    raise ConfigError(
        start_refused(
            place, rule, "Convert it to plain LoRA (peft: path_initial_model_for_weight_conversion)."
        )
    )


def _words(place: Path, described: Mapping[str, Any]) -> list[str]:
    """Return the last words of the names of the layers that it sits on."""
    if (place / FROZEN).is_file():
        named = [*(described.get("target_modules") or ()), *(described.get("target_parameters") or ())]
        names = {str(name).removesuffix(".weight") for name in named}
    else:
        names = {name.partition(".lora_")[0] for name in _tensor_names(place)}
    return sorted({name.rpartition(".")[2] for name in names})


def _tensor_names(place: Path) -> list[str]:
    path = place / FACTORS
    if not path.is_file():
        fix = "Save it as safetensors (peft's save_pretrained does)."
        raise ConfigError(start_refused(place, f"an adapter with {FACTORS}, but has no such file", fix))
    try:
        with path.open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            names = [name for name in json.loads(stream.read(size)) if name != "__metadata__"]
    except (OSError, ValueError, struct.error, MemoryError, OverflowError) as error:
        rule = f"an adapter, but {FACTORS} cannot be read ({type(error).__name__})"
        raise ConfigError(start_refused(place, rule, "Get that file again.")) from error
    if not names:
        raise ConfigError(
            start_refused(place, f"an adapter, but {FACTORS} has no tensors", "Get that file again.")
        )
    return names


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        rule = f"an adapter, but {DESCRIPTION} cannot be read ({type(error).__name__})"
        raise ConfigError(start_refused(path.parent, rule, "Get that file again.")) from error
    if not isinstance(found, dict):
        raise ConfigError(
            start_refused(path.parent, f"an adapter, but {DESCRIPTION} is no object", "Get that file again.")
        )
    return found


def _no_adapter(place: Path) -> str:
    """Return what is said of a place without a description of an adapter."""
    if not place.exists():
        return f"`{KEY}` must be a folder with an adapter, but {place} is not there. Mend the path."
    if place.is_file():
        return (
            f"`{KEY}` must be a folder with an adapter, but {place} is a file. Give the folder that it is in."
        )
    if (place / FROZEN).is_file():
        return start_refused(
            place, "a run that trained an adapter, but trained none", "Give its export as model.path."
        )
    is_model = (place / "config.json").is_file()
    fix = "Set model.path to it: it is a whole model." if is_model else "Mend the path."
    return start_refused(place, f"a folder with an adapter, but has no {DESCRIPTION}", fix)


def start_refused(place: str | Path, rule: str, fix: str) -> str:
    """Return the sentence of an adapter that is not what it must be; `rule` says both, with `, but ` between."""
    wanted, _, found = rule.partition(", but ")
    return f"`{KEY}` must be {wanted}, but {place} {found} instead. {fix}"


def start_said(options: TuneConfig) -> str:
    """Return what was taken from the folder, for the log."""
    kind = ("DoRA" if options.dora else "LoRA") + (" with rsLoRA's scale" if options.rslora else "")
    return f"{kind}, r={options.r}, alpha={options.scale_alpha:g}, on {', '.join(options.target)}"
