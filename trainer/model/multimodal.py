"""The language part of a model that also sees or hears: a causal model of its own, found by property.

The whole is loaded by its own class, so that every renaming and conversion of transformers applies; then its body and
its output layer move into the causal class of the text configuration, and the rest is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from trainer.errors import ModelError
from trainer.model.body import body_of
from trainer.model.lean import causal_class, import_models


def whole_class(config: Any) -> Any:
    """Return the class of a whole whose language part can train alone; None for every other configuration."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    names = getattr(config, "architectures", None) or []
    if getattr(config, "is_encoder_decoder", False) or not names or _is_causal(names):
        return None
    text = config.get_text_config()
    import_models()
    found = getattr(transformers, names[0], None)
    if text is config or text.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or found is None:
        return None
    return found if found.can_generate() else None


def _is_causal(names: list[str]) -> bool:
    return any("CausalLM" in name or "LMHead" in name for name in names)


def text_class(text_config: Any) -> Any:
    """Return the causal class of a text configuration."""
    return causal_class(text_config)


def text_config_of(config: Any) -> Any:
    """Return the configuration of the language part, with what the whole's says of its weights."""
    text = config.get_text_config()
    for key in ("tie_word_embeddings", "quantization_config"):
        if getattr(config, key, None) is not None:
            setattr(text, key, getattr(config, key))
    text.architectures = [text_class(text).__name__]
    return text


def text_part(whole: Any) -> Any:
    """Return the language part of a whole as a causal model; the two share modules.

    Raises:
        ModelError: The whole has no such part, or more than its body and its output layer belong to it.
    """
    config = whole.config.get_text_config()
    kind = text_class(config)
    config.architectures = [kind.__name__]
    for module in whole.modules():
        if type(module) is kind:
            return _like(whole, module)
    embed, head = whole.get_input_embeddings(), whole.get_output_embeddings()
    config.tie_word_embeddings = head is not None and head.weight is embed.weight
    with torch.device("meta"):
        text = kind(config)
    empty = body_of(text)
    bodies = [module for module in whole.modules() if type(module) is type(empty)]
    if len(bodies) == 1 and head is not None:
        name = next(name for name, child in text.named_children() if child is empty)
        setattr(text, name, bodies[0])
        text.set_output_embeddings(head)
    own = {id(parameter) for parameter in whole.parameters()}
    if any(id(parameter) not in own for parameter in text.parameters()):
        raise ModelError(
            f"The language part of {type(whole).__name__} must be a {kind.__name__}, but has other parts in this "
            "transformers. Train a ...ForCausalLM model of this family."
        )
    return _like(whole, text)


def _like(whole: Any, text: Any) -> Any:
    """Give the language part what transformers noted on the whole while loading it."""
    text.generation_config = whole.generation_config
    if getattr(whole, "is_loaded_in_4bit", False):
        text.is_loaded_in_4bit = True
    return text.train(whole.training)


def whole_names(whole: Any, text: Any) -> dict[str, str]:
    """Return the name in the whole of every module of the language part."""
    names = {id(module): name for name, module in whole.named_modules()}
    return {name: names[id(module)] for name, module in text.named_modules() if name and id(module) in names}


def renamed(name: str, modules: Mapping[str, str]) -> str | None:
    """Return a name of a module, or of what is in one, with the module's other name; None where it has none."""
    module, rest = name, ""
    while module and module not in modules:
        module, _, last = module.rpartition(".")
        rest = f".{last}{rest}"
    return modules[module] + rest if module else None
