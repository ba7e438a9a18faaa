"""What a model's config.json alone says against a configuration; loads no torch for known architectures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer.command.fitting import config_json, known_shape
from trainer.config.check_context import context_problems
from trainer.config.check_experts import no_expert_problems
from trainer.config.rule import Problem
from trainer.config.schema import RunConfig
from trainer.errors import TrainerError
from trainer.forecast.shapes import DecoderShape, language_part


def model_rules(config: RunConfig, found: Mapping[str, Any], shape: DecoderShape | None) -> Iterator[Problem]:
    """Yield every broken rule.

    Args:
        found: The contents of the model's config.json.
        shape: Its counts; None where only torch can count it.
    """
    yield from context_problems(context_of(found), config.data.seq_len, config.tune)
    if shape is not None:
        yield from no_expert_problems(config, shape.experts, shape.model_type)


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
