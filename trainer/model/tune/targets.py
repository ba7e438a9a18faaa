"""Which layers of a loaded model get an adapter, and by which names plain peft finds the same ones again.

peft rewrites targets named as the projections of experts once were (`gate_proj`, `up_proj`, `down_proj`, `w1`) into
parameters of experts, for model types that it lists: dense and shared layers of those names would get nothing. So a
layer is asked for by its whole name while injecting, and the folder for others names its weight as a parameter.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from trainer.config.tune import ALL_LINEAR, EXPERTS, TuneConfig, TuneMethod
from trainer.errors import ConfigError
from trainer.forecast.adapter_sizes import has_few_small
from trainer.model.experts import expert_tensors, size_of
from trainer.model.lean import import_peft
from trainer.model.scorer import output_layer


def is_linear(module: nn.Module) -> bool:
    """Tell whether a module is a linear layer and nothing more, whole or in 4 bits; routers are made of them."""
    if not isinstance(module, nn.Linear):
        return False
    return type(module).forward is nn.Linear.forward or type(module).__module__.startswith("bitsandbytes.")


def linear_targets(model: Any, tune: TuneConfig) -> tuple[str, ...]:
    """Return the full names of the linear layers to adapt.

    Raises:
        ConfigError: Names that find nothing or the head, or a rank that no layer can have.
    """
    head = output_layer(model)
    linear = {name: module for name, module in model.named_modules() if is_linear(module)}
    named = [name for name in tune.target if name != EXPERTS]
    if tune.target_pattern is not None:
        key, shown = "tune.target_pattern", tune.target_pattern
        chosen = [name for name in linear if re.fullmatch(tune.target_pattern, name)]
    else:
        key, shown = "tune.target", str(tune.target)
        if named == [ALL_LINEAR]:
            closed = _refused_words(model, linear) if tune.method is TuneMethod.lora else set()
            passed = read_by_weight(model, linear)
            possible = [
                n for n in linear if linear[n] is not head and _last_word(n) not in closed and n not in passed
            ]
            chosen = _large_enough(linear, possible, tune)
        else:
            hits = [{n for n in linear if n == t or n.endswith(f".{t}")} for t in named]
            chosen = [n for n in linear if all(hits) and any(n in hit for hit in hits)]
    if not chosen and (named or tune.target_pattern is not None):
        _refuse_none(model, tune, key, shown, {n for n in linear if linear[n] is not head})
    if passed := read_by_weight(model, chosen):
        raise ConfigError(
            f"`{key}` must name layers that {type(model).__name__} calls, but is {shown} instead, and it reads the "
            f"weight of {min(passed)} past what stands beside it. Leave that one out, or set "
            f"tune.target=[{ALL_LINEAR}]."
        )
    if any(linear[name] is head for name in chosen):
        raise ConfigError(
            f"`{key}` must leave out the output layer, but is {shown} instead, which finds it. Name other layers, or "
            f"set tune.target=[{ALL_LINEAR}]."
        )
    smallest = min(chosen, key=lambda name: _room(linear[name]), default=None)
    if smallest is not None and tune.method is TuneMethod.lora and tune.r > _room(linear[smallest]):
        raise ConfigError(
            f"`tune.r` must be at most the smaller side of every adapted layer ({_room(linear[smallest])} of "
            f"{smallest}), but is {tune.r} instead. Set tune.r={_room(linear[smallest])} at most, or name other layers."
        )
    return tuple(chosen)


def expert_targets(model: Any, tune: TuneConfig) -> tuple[str, ...]:
    """Return the names of the tensors of experts to adapt: all, or none where they are not asked for.

    Raises:
        ConfigError: The model has none, or the rank is above a side of them.
    """
    if tune.target_pattern is not None or EXPERTS not in tune.target:
        return ()
    found = expert_tensors(model)
    if not found:
        raise ConfigError(
            f"`tune.target` must leave out {EXPERTS} for {model.config.model_type}, which has no tensors of experts, "
            f"but is {tune.target} instead. Set tune.target=[{ALL_LINEAR}]."
        )
    sides = {name: min(size_of(p)[1:]) for name, p in found.items()}
    smallest = min(sides, key=lambda name: sides[name])
    if tune.r > sides[smallest]:
        raise ConfigError(
            f"`tune.r` must be at most the smaller side of every expert ({sides[smallest]} of {smallest}), but is "
            f"{tune.r} instead. Set tune.r={sides[smallest]} at most, or leave {EXPERTS} out of tune.target."
        )
    return tuple(found)


def moved_by_peft(model: Any, names: Iterable[str]) -> set[str]:
    """Return those names of layers that peft takes for parts of experts, asked word by word."""
    import_peft()
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    names = list(names)
    words = set()
    for word in {_last_word(name) for name in names}:
        asked = LoraConfig(target_modules=[word])
        try:
            convert_peft_config_for_transformers(asked, model, None)
        except ValueError:  # one of two that are one tensor of experts
            words.add(word)
        if word not in (asked.target_modules or ()):
            words.add(word)
    return {name for name in names if _last_word(name) in words}


def read_by_weight(model: Any, names: Iterable[str]) -> set[str]:
    """Return those names of layers whose weight is read by the module that holds them, in place of a call.

    An adapter beside such a layer is gone round. Mamba's layers hand weights to kernels (`self.out_proj.weight`), peft
    knows of some model types only.
    """
    found = set()
    for name in names:
        owner, _, last = name.rpartition(".")
        read = rf"self\.{re.escape(last)}\.weight\b(?!\.(dtype|device|shape))"
        kind: Any = type(model.get_submodule(owner))
        if re.search(read, _source(kind)):
            found.add(name)
    return found


@functools.cache
def _source(kind: Any) -> str:
    """Return the code of a class and of those it is made from, without torch's own."""
    texts = []
    for one in kind.__mro__:
        if one is not object and not one.__module__.startswith("torch."):
            with contextlib.suppress(OSError, TypeError):
                texts.append(inspect.getsource(one))
    return "\n".join(texts)


def _refused_words(model: Any, names: Iterable[str]) -> set[str]:
    """Return the last words of layers that peft refuses: kernels of the model read their weight, not their forward."""
    import_peft()
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba

    asked, refused = LoraConfig(), set()
    for word in {_last_word(name) for name in names}:
        try:
            _check_lora_target_modules_mamba(asked, model, word)  # type: ignore[no-untyped-call, unused-ignore]
        except ValueError:
            refused.add(word)
    return refused


def _large_enough(linear: dict[str, Any], names: list[str], tune: TuneConfig) -> list[str]:
    """Leave out layers smaller than the rank where they are few weights, such as gates of one row."""
    if tune.method is not TuneMethod.lora:
        return names
    large = [name for name in names if _room(linear[name]) >= tune.r]
    sides = [(linear[name].in_features, linear[name].out_features, 1) for name in names]
    return large if has_few_small(sides, tune.r) else names


def _refuse_none(model: Any, tune: TuneConfig, key: str, shown: str, known: set[str]) -> None:
    kinds = ", ".join(sorted({_last_word(name) for name in known}))
    if not kinds:
        raise ConfigError(
            f"`tune.method` must be another than {tune.method.value} for {model.config.model_type}, which has no "
            "linear layers but its head in transformers. Set tune=full."
        )
    experts = f", or [{ALL_LINEAR},{EXPERTS}]" if expert_tensors(model) else ""
    raise ConfigError(
        f"`{key}` must name linear layers of the model ({kinds}), but is {shown} instead, which finds none. Set "
        f"tune.target=[{ALL_LINEAR}]{experts}."
    )


def _room(layer: Any) -> int:
    return int(min(layer.in_features, layer.out_features))


def _last_word(name: str) -> str:
    return name.rsplit(".", 1)[-1]
