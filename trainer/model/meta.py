"""Count the parameters of any architecture by building it on torch's meta device: no weights, but torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from trainer.config.model import Attention, ModelConfig
from trainer.config.tune import TuneConfig
from trainer.errors import ModelError
from trainer.forecast.shapes import LANGUAGE_NOTE, MIXTURE_NOTE, DecoderShape, Linear
from trainer.forecast.tuned import Trained

NOTE = (
    "The architecture {kind} is not counted from its config.json: it was built on the meta device with transformers. "
    "Its activations are those of a Llama whose MLP has the weights that a token meets outside attention."
)
CARRIES = (
    "{layers} are counted as a Llama's MLP of their weights, as their kernels come near: without these plain torch "
    "keeps many times more. Documents are rows of their own (data.packing), which takes no more than a pack."
)
WHOLE = "The files hold weights in {method}, which are made whole as they are read: {gib:.1f} GiB in bf16."


def meta_shape(found: Mapping[str, Any], source: str, model: ModelConfig) -> DecoderShape:
    """Build a model of the contents of a config.json without memory and count it.

    Raises:
        ModelError: transformers cannot build it, or it says no sizes.
    """
    from trainer.model.attention import offered
    from trainer.model.experts import count_weights, expert_tensors, num_chosen
    from trainer.model.head.bend import find_bend
    from trainer.model.packed import packing_of
    from trainer.model.scorer import has_score, output_layer
    from trainer.model.tune.gated import has_plain_gates
    from trainer.model.tune.targets import is_linear, read_by_weight
    from trainer.model.widths import attention_widths

    whole, config = configs_of(found, source, model)
    packing, has = packing_of(whole), offered(config)
    built = _built(config, source, model)
    counts, weights = _count_by_kind(built, output := output_layer(built)), count_weights(built)
    layers = {name: one for name, one in built.named_modules() if is_linear(one) and one is not output}
    passed = read_by_weight(built, layers)
    linears = Counter(
        (name.rsplit(".", 1)[-1], one.in_features, one.out_features)
        for name, one in layers.items()
        if name not in passed
    )
    text = config.get_text_config()
    hidden, num_layers = _size(text, "hidden_size"), _size(text, "num_hidden_layers")
    has_heads = getattr(text, "num_attention_heads", None) is not None  # state-space models have none
    q_dim, kv_dim = attention_widths(text) or ((hidden, hidden) if has_heads else (0, 0))
    bend = find_bend(built)
    num_sparse = len({name.rpartition(".")[0] for name in expert_tensors(built)})
    return DecoderShape(
        model_type=config.model_type,
        hidden_size=hidden,
        num_layers=num_layers,
        vocab_size=_size(text, "vocab_size"),
        q_dim=int(q_dim),
        kv_dim=int(kv_dim),
        num_heads=_size(text, "num_attention_heads") if has_heads else 0,
        linears=tuple(Linear(*key, count) for key, count in linears.items()),
        ffn_width=max(counts["mlp"] - weights.num_idle, 0) / (3 * hidden * num_layers),
        routed_copies=2 * (num_chosen(config) or 0) * num_sparse / num_layers,
        experts=weights.num_experts,
        idle=weights.num_idle,
        has_qk_norm=any("attn" in name or "attention" in name for name, _ in _norms(built)),
        has_post_norms=_num_wide_norms(built, hidden) >= 4 * num_layers,
        has_flash=Attention.flash_attention_2.value in has.flash and max(has.head_dims, default=0) <= 256,
        has_sdpa=has.has_sdpa,
        scales_logits=bend.scale != 1.0,
        caps_logits=bend.cap is not None,
        has_silu_gates=has_plain_gates(built),
        num_scores=1 if has_score(built) else None,
        notes=tuple(_notes(whole, config, packing, weights.num_experts, sum(counts.values()))),
        embeddings=counts["embeddings"],
        attention=counts["attention"],
        mlp=counts["mlp"],
        norms=counts["norms"],
        head=counts["head"],
    )


def meta_trained(
    found: Mapping[str, Any], tune: TuneConfig, num_new_tokens: int = 0, model: ModelConfig | None = None
) -> Trained:
    """Build a model of a config.json without memory, tune it as a run would, and count what trains.

    Raises:
        ModelError: transformers cannot build it.
        ConfigError: It cannot be tuned so.
    """
    import torch

    from trainer.model.tune.adapters import apply_tuning
    from trainer.model.tune.new_tokens import NewTokens

    model = model or ModelConfig()
    source = model.path or str(found.get("model_type"))
    built = _built(configs_of(found, source, model)[1], source, model)
    own = {id(parameter) for parameter in built.parameters()}
    with torch.device("meta"):
        new = NewTokens(built.config.get_text_config().vocab_size, ((0,),) * num_new_tokens)
        tuned = apply_tuning(built, tune, 0, new if num_new_tokens else None)
    num_own = sum(p.numel() for p in built.parameters() if p.requires_grad and id(p) in own)
    return Trained(tuned.num_trainable - num_own, num_own, len(tuned.modules))


def count_whole(source: str, model: ModelConfig) -> int:
    """Return the parameters of a folder's model, each once; of what sees or hears too, which is read with it.

    Raises:
        ModelError: transformers cannot build it.
    """
    import torch

    from trainer.model.load import read_whole_config
    from trainer.model.multimodal import whole_class
    from trainer.model.packed import forget_packing

    config = read_whole_config(source, model)
    kind = whole_class(config)
    if kind is None:
        built = _built(config, source, model)
    else:
        forget_packing(config)
        with torch.device("meta"):
            built = kind._from_config(config)
    return sum(parameter.numel() for parameter in built.parameters())


def _notes(
    whole: Any, config: Any, packing: dict[str, Any] | None, num_experts: int, num_params: int
) -> Iterator[str]:
    """Yield what the counts leave open."""
    from trainer.model.carry import carried_by
    from trainer.model.packing_kind import method_of

    yield NOTE.format(kind=config.model_type)
    if config is not whole:
        yield LANGUAGE_NOTE.format(kind=whole.model_type)
    if num_experts:
        yield MIXTURE_NOTE
    carried = carried_by(config)
    if carried:
        yield CARRIES.format(layers=carried[0].upper() + carried[1:])
    if packing is not None:
        yield WHOLE.format(method=method_of(packing), gib=2 * num_params / 1024**3)


def configs_of(found: Mapping[str, Any], source: str, model: ModelConfig) -> tuple[Any, Any]:
    """Return the configuration of a folder and that of what trains of it; code is read that comes with the model.

    Raises:
        ModelError: transformers does not know it, or there is no causal model in it.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, AutoConfig

    from trainer.model.load import read_whole_config, settled_config, trained_part

    if model.trust_remote_code and found.get("auto_map"):
        whole = read_whole_config(source, model)
    else:
        if found.get("model_type") not in CONFIG_MAPPING:
            raise ModelError(
                f"`model.path` must be a model that transformers can build, but {source} is {found.get('model_type')} "
                "instead. Use an architecture that this transformers knows, or set model.trust_remote_code=true where "
                "its code comes with it."
            )
        try:
            whole = AutoConfig.for_model(**found)
        except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
            raise _not_built(source, error) from error
        settled_config(whole, source, model)
    return whole, trained_part(whole)


def _built(config: Any, source: str, model: ModelConfig) -> Any:
    """Return a model without memory, its weights whole."""
    import torch

    from trainer.model.packed import forget_packing
    from trainer.model.scorer import auto_class

    forget_packing(config)
    try:
        with torch.device("meta"):
            return auto_class(model.head).from_config(config, trust_remote_code=model.trust_remote_code)
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        raise _not_built(source, error) from error


def _not_built(source: str, error: Exception) -> ModelError:
    return ModelError(
        f"`model.path` must be a model that transformers can build, but {source} is not instead: "
        f"{' '.join(str(error).split())[:200]}. Use an architecture that this transformers knows."
    )


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


def _norms(built: Any) -> list[tuple[str, Any]]:
    return [(name, one) for name, one in built.named_modules() if "norm" in type(one).__name__.lower()]


def _num_wide_norms(built: Any, hidden: int) -> int:
    """Return how many norms are over whole hidden states."""
    return sum([one.numel() for one in norm.parameters()][:1] == [hidden] for _, norm in _norms(built))


def _size(config: Any, key: str) -> int:
    value = getattr(config, key, None)
    if not isinstance(value, int) or value <= 0:
        raise ModelError(
            f"`{key}` of the model's config.json must be a positive integer, but is {value!r} instead. "
            "Its memory cannot be forecast."
        )
    return value
