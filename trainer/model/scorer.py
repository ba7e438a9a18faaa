"""Reward models, as transformers' ...ForSequenceClassification has them: a linear layer [H -> 1] behind the final norm.

Such a model is loaded by its own class, so that its names, its files and its adapters are what plain transformers, peft
and vLLM read. The layer takes the place of the output layer of a language model everywhere here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from trainer.config.model import ModelHead
from trainer.errors import ModelError
from trainer.model.lean import import_models

SCORE = "score"
"""transformers' name of the layer."""
WEIGHT = f"{SCORE}.weight"
KIND = "ForSequenceClassification"
STD = 0.02
"""Of a new layer's weights where the configuration says no `initializer_range`."""


def auto_class(head: ModelHead) -> Any:
    """Return what loads a model with this head."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForCausalLM if head is ModelHead.language else AutoModelForSequenceClassification


def auto_arguments(head: ModelHead) -> dict[str, Any]:
    """Return what that takes beside a folder."""
    return {} if head is ModelHead.language else {"num_labels": 1}


def is_classifier(config: Any) -> bool:
    """Tell whether a configuration is that of a folder with a layer that classifies, or scores."""
    return any(KIND in name for name in getattr(config, "architectures", None) or ())


def check_scorer(config: Any, source: str) -> None:
    """Refuse what can be no reward model, or is a classifier of several labels.

    Raises:
        ModelError: It says which.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as KNOWN,
    )

    if config.model_type not in KNOWN:
        raise ModelError(
            f"`model.path` must be an architecture that transformers has a {KIND} of with objective=reward, but "
            f"{config.model_type} has none instead ({source}). Choose another base."
        )
    if config.get_text_config() is not config:
        raise ModelError(
            f"`model.path` must be a model of text alone with objective=reward, but {source} also sees or hears "
            "instead. Choose its language model, or another base."
        )
    if is_classifier(config) and config.num_labels != 1:
        raise ModelError(
            f"`model.path` must be a language model, or a reward model with one label, but {source} is a classifier of "
            f"{config.num_labels} instead. Name another folder."
        )


def as_scorer(config: Any) -> Any:
    """Return the configuration with one label, in place; what pools is told of no padding: packs have none to skip."""
    config.num_labels, config.problem_type = 1, None
    config.architectures = [class_of(config).__name__]
    return config


def class_of(config: Any) -> Any:
    """Return the class that a configuration of a reward model is loaded as."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    import_models()
    return MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]


def settle_scorer(model: Any) -> bool:
    """Check that the layer is the one that is known, and let the model's own forward score the last token, in place.

    Return whether the layer is in none of the files it was loaded from.

    Raises:
        ModelError: The architecture scores in another way.
    """
    layer: Any = getattr(model, SCORE, None)
    is_plain = type(layer) is nn.Linear and layer.out_features == 1
    if not is_plain or getattr(layer, "bias", None) is not None:
        raise ModelError(
            f"`model.path` must be an architecture with a plain linear layer `{SCORE}` with objective=reward, but "
            f"{type(model).__name__} has {type(layer).__name__} instead. Choose another base."
        )
    model.config.get_text_config().pad_token_id = None  # one document at a time, whose every token counts
    return not is_classifier(model.config)


def has_score(model: Any) -> bool:
    """Tell whether a model is a reward model."""
    return KIND in type(model).__name__


def output_layer(model: Any) -> Any:
    """Return the layer that answers: the output layer of a language model, or what scores; None without one."""
    return getattr(model, SCORE) if has_score(model) else model.get_output_embeddings()


def begin_score(weight: nn.Parameter, config: Any, seed: int) -> None:
    """Fill a new layer [1, H]: normal, the same on every rank, whatever its generators hold."""
    std = float(getattr(config.get_text_config(), "initializer_range", None) or STD)
    values = torch.empty(weight.shape).normal_(0.0, std, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        weight.copy_(values)


def left_out(names: Iterable[str], prefix: str) -> list[str]:
    """Return those names in a language model's files that are its output layer: one module beside the body.

    Args:
        prefix: Of the body.
    """
    return [name for name in names if name.count(".") == 1 and not name.startswith(f"{prefix}.")]
