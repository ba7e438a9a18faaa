"""What a model's config.json alone says against a configuration; loads no torch for known architectures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer.command.counted import config_json, known_shape
from trainer.config.check_context import context_problems
from trainer.config.check_experts import no_expert_problems
from trainer.config.check_sequence import head_problems
from trainer.config.rule import Problem, must, problem, said
from trainer.config.schema import RunConfig
from trainer.config.tune import ALL_LINEAR, TuneConfig, TuneMethod
from trainer.errors import TrainerError
from trainer.forecast.adapter_sizes import chosen
from trainer.forecast.shapes import DecoderShape, language_part
from trainer.forecast.tuned import named_targets, needs_names
from trainer.model.packing_kind import check_packing

_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def model_rules(config: RunConfig, found: Mapping[str, Any], shape: DecoderShape | None) -> Iterator[Problem]:
    """Yield every broken rule.

    Args:
        found: The contents of the model's config.json.
        shape: Its counts; None where only torch can count it.
    """
    yield from context_problems(context_of(found), config.data.seq_len, config.tune)
    yield from _packing_problems(config, found)
    yield from _choice_problems(config.model.path, language_part(found))
    if shape is not None:
        yield from no_expert_problems(config, shape.experts, shape.model_type)
        yield from head_problems(config.train.sequence_parallel, [shape.num_heads])
        yield from _adapter_problems(config.tune, shape)


def _packing_problems(config: RunConfig, found: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield a problem where the folder's weights are packed in a way that does not go with the tuning."""
    packing = found.get("quantization_config") or language_part(found).get("quantization_config")
    if packing is not None and not isinstance(packing, dict):
        fix = "Mend it, or name another model.path."
        yield problem(
            "model.path",
            f"must be a folder whose quantization_config is a mapping, but that of {config.model.path} is {packing!r} "
            f"instead. {fix}",
        )
        return
    try:
        check_packing(packing, config.model.path, config.tune.quantise)
    except TrainerError as error:
        yield said("model.path", str(error))


def _choice_problems(path: str, part: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield a token that is sent to more experts than a layer has."""
    counts = {key: part[key] for key in (*_CHOSEN, *_EXPERTS) if type(part.get(key)) is int}
    chosen = next((key for key in _CHOSEN if key in counts), None)
    held = max((counts[key] for key in _EXPERTS if key in counts), default=0)
    if chosen is not None and 0 < held < counts[chosen]:
        yield problem(
            "model.path",
            f"must be a folder whose config.json sends a token to at most the {held} experts of a layer, but {path} "
            f"has {chosen}={counts[chosen]} instead. Mend it, or name another model.path.",
        )


def _adapter_problems(tune: TuneConfig, shape: DecoderShape) -> Iterator[Problem]:
    """Yield a target that is no linear layer, or a rank that one has no room for."""
    if tune.method not in (TuneMethod.lora, TuneMethod.ia3) or needs_names(tune):
        return
    kinds = sorted({linear.name.rsplit(".", 1)[-1] for linear in shape.linears})
    named = named_targets(tune)
    if any(name not in kinds for name in named or ()):
        rule = f"linear layers of the model ({', '.join(kinds)})"
        yield problem(
            "tune.target", f"must name {rule}, but is {tune.target} instead. Set tune.target=[{ALL_LINEAR}]."
        )
        return
    sides = {min(one.num_in, one.num_out): one.name for one in chosen(shape, named, tune.r)}
    least = min(sides, default=tune.r)
    if tune.method is TuneMethod.lora and tune.r > least:
        rule = f"at most the smaller side of every adapted layer ({least} of {sides[least]})"
        yield must("tune.r", rule, tune.r, f"Set tune.r={least} at most, or name other layers.")


def rules_of_named_model(config: RunConfig) -> list[Problem]:
    """Return the rules of the named model that are broken; none where its config.json cannot be had, told later."""
    try:
        return list(model_rules(config, config_json(config.model)[0], known_shape(config)))
    except TrainerError:
        return []


def context_of(found: Mapping[str, Any]) -> int | None:
    """Return the longest input that a model was made for, in tokens; None where its config.json does not say."""
    context = language_part(found).get("max_position_embeddings")
    return context if isinstance(context, int) and context > 0 else None
