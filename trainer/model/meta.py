"""Count the parameters of any architecture by building it on torch's meta device: no weights, but torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.config.model import ModelConfig
from trainer.config.tune import TuneConfig
from trainer.errors import ModelError
from trainer.forecast.shapes import DecoderShape, Linear
from trainer.forecast.tuned import Trained

NOTE = (
    "The architecture {kind} is not counted from its config.json: it was built on the meta device with transformers. "
    "Its activations are those of a Llama of the same sizes."
)


def meta_shape(source: str, model: ModelConfig) -> DecoderShape:
    """Build a model without memory and count it.

    Raises:
        ModelError: transformers cannot build it, or it says no sizes.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from trainer.model.experts import count_weights
    from trainer.model.load import read_config
    from trainer.model.packed import forget_packing
    from trainer.model.tune.targets import is_linear
    from trainer.model.widths import attention_widths

    config = read_config(source, model)
    forget_packing(config)
    try:
        with torch.device("meta"):
            built: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        raise ModelError(
            f"`model.path` must be a model that transformers can build, but {source} is not instead: "
            f"{' '.join(str(error).split())[:200]}. Use an architecture that this transformers knows."
        ) from error
    output = built.get_output_embeddings()
    counts, weights = _count_by_kind(built, output), count_weights(built)
    linears: dict[tuple[str, int, int], int] = {}
    for name, module in built.named_modules():
        if is_linear(module) and module is not output:
            key = (name.rsplit(".", 1)[-1], module.in_features, module.out_features)
            linears[key] = linears.get(key, 0) + 1
    text = config.get_text_config()
    hidden, num_layers = _size(text, "hidden_size"), _size(text, "num_hidden_layers")
    num_heads = _size(text, "num_attention_heads")
    q_dim, kv_dim = attention_widths(text) or (hidden, hidden)
    return DecoderShape(
        model_type=config.model_type,
        hidden_size=hidden,
        num_layers=num_layers,
        vocab_size=_size(text, "vocab_size"),
        q_dim=int(q_dim),
        kv_dim=int(kv_dim),
        num_heads=num_heads,
        linears=tuple(Linear(*key, count) for key, count in linears.items()),
        ffn_width=_ffn_width(text, hidden),
        experts=weights.num_experts,
        idle=weights.num_idle,
        notes=(NOTE.format(kind=config.model_type),),
        embeddings=counts["embeddings"],
        attention=counts["attention"],
        mlp=counts["mlp"],
        norms=counts["norms"],
        head=counts["head"],
    )


def meta_trained(config: Mapping[str, Any], tune: TuneConfig, num_new_tokens: int = 0) -> Trained:
    """Build a model of a config.json without memory, tune it as a run would, and count what trains.

    Raises:
        ModelError: transformers cannot build it.
        ConfigError: It cannot be tuned so.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from trainer.model.multimodal import text_config_of, whole_class
    from trainer.model.tune.adapters import apply_tuning
    from trainer.model.tune.new_tokens import NewTokens

    try:
        found = AutoConfig.for_model(**config)
        found = found if whole_class(found) is None else text_config_of(found)
        with torch.device("meta"):
            built: Any = AutoModelForCausalLM.from_config(found)
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        raise ModelError(
            f"`model.path` must be a model that transformers can build to count tune.method={tune.method.value}, but "
            f"{config.get('model_type')} is not instead: {' '.join(str(error).split())[:200]}. Name modules by their "
            "last names, or use an architecture that this transformers knows."
        ) from error
    own = {id(parameter) for parameter in built.parameters()}
    with torch.device("meta"):
        new = NewTokens(built.config.get_text_config().vocab_size, ((0,),) * num_new_tokens)
        tuned = apply_tuning(built, tune, 0, new if num_new_tokens else None)
    num_own = sum(p.numel() for p in built.parameters() if p.requires_grad and id(p) in own)
    return Trained(tuned.num_trainable - num_own, num_own, len(tuned.modules))


def _count_by_kind(built: Any, output: Any) -> dict[str, int]:
    """Return the parameters by kind, each parameter once."""
    from torch import nn

    counts = dict.fromkeys(("embeddings", "attention", "mlp", "norms", "head"), 0)
    seen: set[int] = set()
    # Embeddings come first, so that a tied head is counted with them.
    for name, module in built.named_modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if isinstance(module, nn.Embedding):
                kind = "embeddings"
            elif module is output:
                kind = "head"
            elif "norm" in type(module).__name__.lower():
                kind = "norms"
            else:
                kind = "attention" if "attn" in name or "attention" in name else "mlp"
            counts[kind] += parameter.numel()
    return counts


def _ffn_width(config: Any, hidden: int) -> float:
    experts = getattr(config, "num_experts_per_tok", None)
    width = (getattr(config, "moe_intermediate_size", None) if experts else None) or getattr(
        config, "intermediate_size", None
    )
    return float((width or 4 * hidden) * (experts or 1))


def _size(config: Any, key: str) -> int:
    value = getattr(config, key, None)
    if not isinstance(value, int) or value <= 0:
        raise ModelError(
            f"`{key}` of the model's config.json must be a positive integer, but is {value!r} instead. "
            "Its memory cannot be forecast."
        )
    return value
