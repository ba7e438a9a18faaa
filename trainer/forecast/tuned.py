"""What trains of a model by every method, in parameters: a pure function of shapes and of the section `tune`.

Where the names of modules decide, the answer is None, and the model has to be built on the meta device.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.config.tune import ALL_LINEAR, EXPERTS, Quantise, TuneConfig, TuneMethod
from trainer.forecast.adapter_sizes import chosen, gated_width, in_nf4
from trainer.forecast.memory import Weights, full_weights
from trainer.forecast.shapes import DecoderShape, Linear


@dataclass(frozen=True, slots=True)
class Trained:
    """Counts of what trains: added to the model, or the model's own."""

    num_added: int
    num_own: int = 0
    num_adapted: int = 0
    """Linear layers with an adapter."""

    @property
    def num_trainable(self) -> int:
        """Return all that trains."""
        return self.num_added + self.num_own


def named_targets(tune: TuneConfig) -> list[str] | None:
    """Return the names of the adapted linear layers; None for all."""
    return None if ALL_LINEAR in tune.target else [name for name in tune.target if name != EXPERTS]


def needs_names(tune: TuneConfig) -> bool:
    """Tell whether counting takes the names of the model's modules and not only their shapes."""
    has_targets = tune.method in (TuneMethod.lora, TuneMethod.ia3)
    by_path = tune.target_pattern is not None or any("." in name or name == EXPERTS for name in tune.target)
    return tune.method is TuneMethod.freeze or bool(tune.modules_to_save) or (has_targets and by_path)


def count_trained(shape: DecoderShape, tune: TuneConfig, num_new_tokens: int = 0) -> Trained | None:
    """Return what trains; None where it takes names. An adapter whose targets are not there counts 0.

    Args:
        num_new_tokens: Rows of the embeddings, and of an untied head, that train beside the adapter.
    """
    if tune.method is TuneMethod.full:
        return Trained(0, shape.num_params)
    if needs_names(tune):
        return None
    rows = num_new_tokens * shape.hidden_size * (1 if shape.is_tied else 2)
    linears = chosen(shape, named_targets(tune), tune.r if tune.method is TuneMethod.lora else 1)
    match tune.method:
        case TuneMethod.lora:
            added = sum(_lora(linear, tune) for linear in linears)
        case TuneMethod.ia3:
            added = sum(_ia3(linear, tune) for linear in linears)
        case TuneMethod.prefix:
            return Trained(tune.virtual_tokens * shape.num_layers * 2 * shape.kv_dim)
        case _:
            return Trained(tune.virtual_tokens * shape.hidden_size)
    own = shape.head if shape.num_scores is not None else 0
    if not added:
        return Trained(0)
    return Trained(added + rows, own, num_adapted=sum(linear.count for linear in linears))


def weights_of(shape: DecoderShape, tune: TuneConfig, trained: Trained, element_bytes: int = 2) -> Weights:
    """Return what trains and what is frozen, in the dtype of training or with its linear layers in NF4."""
    num_frozen = shape.num_params - trained.num_own
    if num_frozen == 0:
        return full_weights(shape)
    is_lora = tune.method is TuneMethod.lora
    width = tune.r * trained.num_adapted if is_lora else 0
    is_merged = is_lora and _trains_experts(tune)
    weights = Weights(
        num_trainable=trained.num_trainable,
        frozen_bytes=num_frozen * element_bytes,
        num_frozen=num_frozen,
        adapter_width=width // shape.num_layers,
        gated_width=gated_width(shape, tune.r, named_targets(tune))
        if is_lora and is_one_function(tune)
        else 0.0,
        trains_experts=_trains_experts(tune),
        num_merged=shape.experts // shape.num_layers if is_merged else 0,
    )
    return weights if tune.quantise is Quantise.none else in_nf4(shape, weights, element_bytes)


def is_one_function(tune: TuneConfig) -> bool:
    """Tell whether gated MLPs may be one function with adapters of this section.

    Not where a pattern chooses layers, though it may choose these: the forecast is too high then.
    """
    return not (tune.dora or tune.dropout or tune.target_pattern)


def _trains_experts(tune: TuneConfig) -> bool:
    """Tell whether experts of a mixture may train, or have adapters; a pattern is taken to find them."""
    has_targets = tune.method in (TuneMethod.lora, TuneMethod.ia3)
    is_named = tune.target_pattern is not None or EXPERTS in tune.target
    return tune.trains_weights or (has_targets and is_named)


def _lora(linear: Linear, tune: TuneConfig) -> int:
    magnitudes = linear.num_out if tune.dora else 0
    return linear.count * (tune.r * (linear.num_in + linear.num_out) + magnitudes)


def _ia3(linear: Linear, tune: TuneConfig) -> int:
    is_inner = linear.name.rsplit(".", 1)[-1] in tune.feedforward
    return linear.count * (linear.num_in if is_inner else linear.num_out)
