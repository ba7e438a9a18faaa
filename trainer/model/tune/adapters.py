"""Adapters: put into a loaded model in place, switched off and on, and proved not to touch the base.

The layers and their arithmetic are peft's; the model keeps its class and its names, so attention kernels, loss head and
activation checkpointing work as they do without.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trainer.config.tune import ALL_LINEAR, EXPERTS, Init, TuneConfig, TuneMethod
from trainer.errors import ConfigError
from trainer.model.lean import import_peft
from trainer.model.scorer import SCORE, has_score, output_layer
from trainer.model.tune.adapted import (
    adapted,
    counted,
    counted_layers,
    refuse_others,
    without_adapter,
)
from trainer.model.tune.new_tokens import NewTokens, add_new_tokens
from trainer.model.tune.prompt import VirtualTokens, make_virtual_tokens, virtual_off
from trainer.model.tune.quantise import held_tensors, num_weights
from trainer.model.tune.started import StartAdapter, check_layers, fill_adapter
from trainer.model.tune.targets import expert_targets, is_linear, linear_targets, moved_by_peft
from trainer.model.tune.whole import train_whole

ADAPTER = "default"
"""peft's name for the one adapter of a model."""
SCORED = "SEQ_CLS"
"""peft's name for what an adapter of a reward model does."""
FACTOR_B = re.compile(r"\.lora_(embedding_)?B\.")
"""Parameters whose learning rate LoRA+ raises."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """What trains in a model."""

    num_trainable: int
    num_total: int
    peft_config: Any = None
    """peft's own description of the adapter; None without one."""
    modules: tuple[str, ...] = ()
    """Names of the linear layers that the adapter sits on."""
    tensors: tuple[str, ...] = ()
    """Names of the parameters of experts that it sits on: several matrices in one."""
    left_out: tuple[tuple[str, int, bool], ...] = ()
    """Names and sizes of the frozen matrices without factors, and whether they are experts: of experts alone, or with
    all_linear, all."""
    virtual: VirtualTokens | None = None
    """What puts virtual tokens before documents; no part of the model."""

    @property
    def described(self) -> str:
        """Return what the adapter sits on, by kind and count."""
        layers = f"{len(self.modules)} linear layers ({counted_layers(self.modules)})"
        experts = f"{len(self.tensors)} tensors of experts ({counted(self.tensors)})"
        return " and ".join([layers] * bool(self.modules) + [experts] * bool(self.tensors))

    @property
    def has_idle_experts(self) -> bool:
        """Tell whether experts of a mixture have no adapter."""
        return not self.tensors and any(is_expert for *_, is_expert in self.left_out)

    @property
    def is_partial(self) -> bool:
        """Tell whether something is frozen."""
        return self.num_trainable < self.num_total


def describe_tuned(tuned: Tuned, method: TuneMethod) -> list[str]:
    """Return what a person should know of what trains, and of what was left out; nothing where all trains."""
    if not tuned.is_partial:
        return []
    share = 100 * tuned.num_trainable / tuned.num_total
    where = f": {method.value} on {tuned.described}" if tuned.modules or tuned.tensors else ""
    lines = [f"Training {tuned.num_trainable:,} of {tuned.num_total:,} parameters ({share:.2f} %){where}."]
    if tuned.left_out:
        size = sum(size for _, size, _ in tuned.left_out)
        kinds = counted(name for name, *_ in tuned.left_out)
        lines.append(f"Without an adapter: {size:,} parameters in {len(tuned.left_out)} tensors ({kinds}).")
        if tuned.has_idle_experts:
            lines[-1] += (
                f" tune.target=[{ALL_LINEAR},{EXPERTS}] would adapt the experts too; routers stay as they are."
            )
    return lines


def apply_tuning(
    model: Any,
    tune: TuneConfig,
    seed: int,
    new_tokens: NewTokens | None = None,
    start: StartAdapter | None = None,
) -> Tuned:
    """Freeze what does not train and add the adapter, in place. The same on every rank, whatever its generators hold.

    Under ZeRO-3 collective, and peft must have been told of it (`announce_zero3`).

    Args:
        start: What a LoRA adapter begins as; its layers are those that get one.
    Raises:
        ConfigError: A pattern that finds nothing or the head, or a rank that no layer can have.
        ModelError: `start` is of another model.
    """
    peft_config: Any = None
    modules, tensors, virtual = tuple[str, ...](), tuple[str, ...](), None
    if tune.method is TuneMethod.lora:
        peft_config, modules, tensors = _add_lora(model, tune, seed, start)
    elif tune.method is TuneMethod.ia3:
        peft_config, modules = _add_ia3(model, tune)
    if peft_config is not None and has_score(model):
        peft_config.task_type = SCORED
        peft_config.modules_to_save = train_whole(model, [*tune.modules_to_save, SCORE], modules)
    elif tune.modules_to_save:
        peft_config.modules_to_save = train_whole(model, tune.modules_to_save, modules)
    if new_tokens is not None:
        peft_config.trainable_token_indices = add_new_tokens(model, new_tokens)
    if tune.method is TuneMethod.freeze:
        _freeze(model, tune)
        if has_score(model):
            output_layer(model).requires_grad_(True)
    elif tune.is_virtual:
        virtual, peft_config = make_virtual_tokens(model, tune, seed)
        model.requires_grad_(False)
    parameters = [*model.parameters(), *(virtual.parameters() if virtual is not None else ())]
    sizes = [(p.requires_grad, num_weights(p)) for p in parameters]
    num_trainable = sum(size for trains, size in sizes if trains)
    left_out: tuple[tuple[str, int, bool], ...] = ()
    if tune.method is TuneMethod.lora:
        left_out = without_adapter(model, only_experts=ALL_LINEAR not in tune.target)
    total = sum(size for _, size in sizes)
    return Tuned(num_trainable, total, peft_config, modules, tensors, left_out, virtual)


def _add_lora(
    model: Any, tune: TuneConfig, seed: int, start: StartAdapter | None
) -> tuple[Any, tuple[str, ...], tuple[str, ...]]:
    """Inject the factors; return their description for plain peft, and the layers and tensors that have some."""
    import_peft()
    from peft import LoraConfig, inject_adapter_in_model

    if start is None:
        names, experts = linear_targets(model, tune), expert_targets(model, tune)
    else:
        check_layers(model, start, is_linear)
        names, experts = tuple(name for name, _ in model.named_modules() if name in start.layers), ()
    moved = moved_by_peft(model, names)
    if moved and tune.dora:
        raise ConfigError(
            f"`tune.dora` must be false on {counted_layers(moved)} of {model.config.model_type}, but is true instead: "
            "peft reads these layers as parameters, which it has no DoRA for. Set tune.dora=false."
        )
    options: dict[str, Any] = {
        "r": tune.r,
        "lora_alpha": tune.scale_alpha,
        "use_rslora": tune.rslora,
        "init_lora_weights": "gaussian" if tune.init is Init.gaussian else True,
        "task_type": "CAUSAL_LM",
    }
    kept = sorted(set(names) - moved)
    peft_config = LoraConfig(target_modules=kept, lora_dropout=tune.dropout, use_dora=tune.dora, **options)
    with torch.random.fork_rng(), warnings.catch_warnings():
        # That whole names find more layers than the description does is what they are for.
        warnings.filterwarnings("ignore", "While injecting the PEFT adapters", RuntimeWarning)
        warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)  # ours, of the layers
        torch.manual_seed(seed)
        try:
            if names:
                whole: dict[str, Any] = {f"{name}.lora_A.weight": None for name in names}
                inject_adapter_in_model(peft_config, model, adapter_name=ADAPTER, state_dict=whole)
            if experts:
                alone = LoraConfig(target_modules=[], target_parameters=list(experts), **options)
                inject_adapter_in_model(alone, model, adapter_name=ADAPTER)
        except (ValueError, NotImplementedError, TypeError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise ConfigError(
                f"`tune` must be what peft can add to {model.config.model_type}, but peft refuses it: {reason}. "
                "Change tune.target, or the option of tune that it names."
            ) from error
    if tune.init is Init.pissa:
        peft_config.init_lora_weights = tune.init.value  # for readers; begin_at_principal fills the factors
    if moved or experts:
        peft_config.target_parameters = sorted([*(f"{name}.weight" for name in moved), *experts])
        peft_config.lora_dropout = 0.0  # peft reads no parameters beside one, which is of training alone
    modules, tensors = adapted(model)
    refuse_others(names, experts, modules, tensors)
    if start is not None:
        fill_adapter(model, start)
    return peft_config, modules, tensors


def _add_ia3(model: Any, tune: TuneConfig) -> tuple[Any, tuple[str, ...]]:
    import_peft()
    from peft import IA3Config, inject_adapter_in_model

    names = linear_targets(model, tune)
    inner = [name for name in names if name.rsplit(".", 1)[-1] in tune.feedforward]
    peft_config = IA3Config(
        target_modules=sorted(names), feedforward_modules=sorted(inner), task_type="CAUSAL_LM"
    )
    inject_adapter_in_model(peft_config, model, adapter_name=ADAPTER)
    return peft_config, names


def _freeze(model: Any, tune: TuneConfig) -> None:
    layers = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    decoder = max(layers, key=len, default=nn.ModuleList())
    if tune.last_layers > len(decoder):
        raise ConfigError(
            f"`tune.last_layers` must be at most the model's {len(decoder)} layers, but is {tune.last_layers} instead. "
            f"Set tune.last_layers={len(decoder)}, or tune=full."
        )
    last = {id(p) for layer in list(decoder)[len(decoder) - tune.last_layers :] for p in layer.parameters()}
    found = dict.fromkeys(tune.train, False)
    for name, parameter in model.named_parameters():
        hits = [pattern for pattern in tune.train if re.search(pattern, name)]
        found |= dict.fromkeys(hits, True)
        parameter.requires_grad_(bool(hits) or id(parameter) in last)
    lost = [pattern for pattern, hit in found.items() if not hit]
    if lost:
        raise ConfigError(
            f"`tune.train` must find parameters of the model, but {lost[0]!r} finds none instead. Names look like "
            f"{next(iter(dict(model.named_parameters())))}."
        )


@contextlib.contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """Run the base: every adapter layer passes by its factors, and there are no virtual tokens.

    peft's own switch also changes requires_grad, which DeepSpeed reads; this sets only what the forward reads.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        with virtual_off(model):
            yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def frozen_checksum(model: nn.Module) -> int:
    """Return a number that a single flipped bit of what this rank holds of the frozen parameters changes.

    Every byte times an odd number of its place, summed modulo 2^64 where the parameters are; the host waits once.
    """
    total: torch.Tensor | None = None
    frozen = (parameter for parameter in model.parameters() if not parameter.requires_grad)
    for index, held in enumerate(held for parameter in frozen for held in held_tensors(parameter)):
        for block in torch.split(held.reshape(-1), 1 << 24):
            bits = block.view(torch.uint8).to(torch.int64)
            places = torch.arange(len(bits), device=bits.device, dtype=torch.int64) * 2 + 1
            part = (bits * places).sum() * (2 * index + 1)
            total = part if total is None else total + part.to(total.device)
    return 0 if total is None else int(total) % 2**64
