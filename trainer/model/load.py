"""Load a causal model with its weights, or refuse: never train random weights unnoticed."""

from __future__ import annotations

import contextlib
import pickle
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError

from trainer.config.model import ModelConfig, ModelHead, ModelKind
from trainer.config.tune import Quantise
from trainer.errors import ModelError
from trainer.model.attention import AttentionChoice
from trainer.model.exact_routers import make_routers_exact
from trainer.model.kernels import leave_out_kernels
from trainer.model.lean import import_models
from trainer.model.load_problems import check_names, check_shapes, in_shards
from trainer.model.multimodal import text_config_of, text_part, whole_class
from trainer.model.own_code import OwnCode
from trainer.model.packed import fit_nf4, now_whole, packing_of, reading_nf4, unpacking
from trainer.model.packing_kind import is_nf4
from trainer.model.scorer import (
    as_scorer,
    auto_arguments,
    auto_class,
    check_scorer,
    is_classifier,
    settle_scorer,
)
from trainer.model.tune.quantise import adopt, load_arguments, num_weights, pack

_UNREADABLE = (OSError, ValueError, RuntimeError, IndexError, TypeError, AttributeError, SafetensorError)
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(slots=True)
class LoadedModel:
    """The model and what was learnt while loading it."""

    model: Any
    attention: AttentionChoice
    source: str
    num_parameters: int
    own_code: OwnCode
    """What it runs without the kernels that are put in later."""
    kernels: str = ""
    """What was fused, and by whom; told once it is known."""
    has_new_score: bool = False
    """A reward model whose layer that scores is in no file: it has no values yet."""


def read_config(source: str, model: ModelConfig) -> Any:
    """Return the configuration of what trains: of a model that also sees or hears, that of its language part.

    Raises:
        ModelError: No config, or an architecture without a causal head.
    """
    return trained_part(read_whole_config(source, model))


def trained_part(whole: Any) -> Any:
    """Return the configuration of what trains, of that of a folder."""
    return whole if whole_class(whole) is None else text_config_of(whole)


def read_whole_config(source: str, model: ModelConfig) -> Any:
    """Read config.json and refuse what has no causal language model in it.

    Raises:
        ModelError: No config, or an architecture without a causal head.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            source, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if isinstance(error, StrictDataclassError):  # the second line says what is wrong with the field
            first = " ".join(str(error).split())[:200]
        hint = ""
        if "custom code" in str(error):
            hint = " To run it, set model.trust_remote_code=true."
        elif "connect" in str(error):
            hint = " Look at the network, or bring the model here and give its folder: model.path=FOLDER."
        raise ModelError(
            f"`model.path` must be a model folder or name, but {source} cannot be read: {first}{hint}"
        ) from error
    return settled_config(config, source, model)


def settled_config(config: Any, source: str, model: ModelConfig) -> Any:
    """Return a configuration as it trains, in place: a language model's, or that of a reward model.

    Raises:
        ModelError: It can be none.
    """
    remote = bool(model.trust_remote_code and getattr(config, "auto_map", None))
    if model.head is ModelHead.language:
        check_causal(config, source, remote)
        return config
    if not is_classifier(config):
        check_causal(config, source)
    check_scorer(config, source)
    return as_scorer(config)


def check_causal(config: Any, source: str, remote: bool = False) -> None:
    """Refuse a configuration with no causal language model in it.

    Args:
        remote: Code that comes with the model says what it is.
    Raises:
        ModelError: An architecture without a causal head.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    encoder_like = getattr(config, "is_encoder_decoder", False)
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:  # sees what comes next, unless told not to
        encoder_like = encoder_like or getattr(config, "is_decoder", None) is False
    names = getattr(config, "architectures", None) or []
    wrong_head = names and not any("CausalLM" in n or "LMHead" in n for n in names)
    known = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if not remote and (encoder_like or wrong_head or not known) and whole_class(config) is None:
        shown = names[0] if names else config.model_type
        raise ModelError(
            f"`model.path` must be a causal language model, but {source} is {shown} instead. Choose a "
            "...ForCausalLM model, or one that has such a model as its text part"
            f"{'; a reward model goes on training with objective=reward' * is_classifier(config)}."
        )


def router_loss(config: Any) -> float:
    """Return the weight of a loss that evens out the use of experts in training; 0 without one.

    transformers adds it where the configuration has `output_router_logits`, and so do we.
    """
    value = _of_text(config, "router_aux_loss_coef")
    is_on = bool(_of_text(config, "output_router_logits"))
    return float(value) if is_on and isinstance(value, int | float) else 0.0


def _of_text(config: Any, key: str) -> Any:
    """Return a value of the configuration, or of that of its text part."""
    value = getattr(config, key, None)
    return getattr(config.get_text_config(), key, None) if value is None else value


def load_model(
    source: str,
    model: ModelConfig,
    attention: AttentionChoice,
    dtype: str,
    zero3_config: dict[str, Any] | None,
    device: torch.device,
    quantise: Quantise = Quantise.none,
) -> LoadedModel:
    """Load the model on this rank. Collective under ZeRO-3: every rank, same order.

    Args:
        zero3_config: The DeepSpeed dictionary when stage 3 shards parameters as they are made, so
            that no rank holds the whole model on its GPU; None otherwise.
        quantise: Packs each linear layer's weight as it is read. A rank then holds the whole packed model until
            the engine shards it: DeepSpeed cannot make packed parameters sharded.
    Raises:
        ModelError: Missing, unexpected or mismatched weights.
    """
    import_models()
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of reading files; what is downloaded is here by now
    config, packing = trained_part(whole := read_whole_config(source, model)), packing_of(whole)
    packs_now = quantise is not Quantise.none
    shards_now = zero3_config is not None and not packs_now
    keep_alive = announce_zero3(zero3_config if shards_now else None)
    arguments: dict[str, Any] = {
        "dtype": _DTYPES[dtype],
        "attn_implementation": attention.name,
        "trust_remote_code": model.trust_remote_code,
    }
    if model.kind is ModelKind.random:
        loaded = _make_random(config, arguments, model, shards_now, device)
        if packs_now:
            pack(loaded, _DTYPES[dtype], zero3_config is not None)
            adopt(loaded)
    elif is_nf4(packing):
        loaded = _load_pretrained(source, model, arguments | reading_nf4(device), False, device)
        fit_nf4(loaded, _DTYPES[dtype], zero3_config is not None)
        adopt(loaded)
    elif packs_now:
        arguments |= load_arguments(_DTYPES[dtype], device, zero3_config is not None)
        loaded = _load_pretrained(source, model, arguments, False, device)
        check_shapes(loaded, config, model.trust_remote_code)
        adopt(loaded)
    else:
        if packing is not None:
            arguments |= unpacking(packing)
        loaded = _load_pretrained(source, model, arguments, not shards_now, device)
        if packing is not None:
            now_whole(loaded, _DTYPES[dtype])
        if not shards_now:
            loaded = loaded.to(device)
    del keep_alive
    loaded.config.use_cache = False
    is_new = model.head is ModelHead.score and settle_scorer(loaded)
    _settle_layers(loaded, dtype == "bf16" and model.router_float32, device)
    count, code = sum(map(num_weights, loaded.parameters())), OwnCode(loaded)
    return LoadedModel(loaded, attention, source, count, code, has_new_score=is_new)


def _settle_layers(loaded: Any, is_exact: bool, device: torch.device) -> None:
    leave_out_kernels(loaded, on_gpu=device.type == "cuda")
    if is_exact:
        make_routers_exact(loaded)


def announce_zero3(zero3_config: dict[str, Any] | None) -> Any:
    """Tell transformers and peft about ZeRO-3; they shard and gather while what this returns is alive."""
    if zero3_config is None:
        return None
    from transformers.integrations import HfDeepSpeedConfig

    return HfDeepSpeedConfig(zero3_config)


def _make_random(
    config: Any, arguments: dict[str, Any], model: ModelConfig, sharded: bool, device: torch.device
) -> Any:
    torch.manual_seed(model.seed)
    place = contextlib.nullcontext() if sharded else device
    with place:
        return auto_class(model.head).from_config(config, **arguments)


def _load_pretrained(
    source: str, model: ModelConfig, arguments: dict[str, Any], direct: bool, device: torch.device
) -> Any:
    """Return the model of the files; of a model that also sees or hears, its language part alone."""
    if direct and device.type == "cuda":
        arguments = arguments | {"device_map": {"": str(device)}}
    config = read_whole_config(source, model)
    whole, attention = whole_class(config), arguments["attn_implementation"]
    if whole is not None:  # what sees may refuse an attention that the language part can do
        arguments = arguments | {"attn_implementation": "eager"}
    try:
        loaded, info = (whole or auto_class(model.head)).from_pretrained(
            # Mismatched sizes are reported, and refused below, instead of raised as a bare RuntimeError.
            source,
            revision=model.revision,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **auto_arguments(model.head),
            **arguments,
        )
    except torch.OutOfMemoryError:
        raise
    except pickle.UnpicklingError as error:  # whose own words advise to run it
        raise ModelError(
            f"The weights of {source} must be tensors alone, but its .bin or .pt files hold what may be code instead. "
            "It was not run. Get safetensors, or name another model.path."
        ) from error
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise ModelError(
            f"The weights of {source} (model.safetensors or its shards) cannot be loaded: {reason}. "
            f"{in_shards('Get the files again')}, or name another model.path."
        ) from error
    check_names(loaded, info, source, model.head, was_packed="quantization_config" in arguments)
    return loaded if whole is None else _with_attention(text_part(loaded), attention, source)


def _with_attention(text: Any, attention: str, source: str) -> Any:
    """Give the language part the attention that was chosen.

    Raises:
        ModelError: It cannot use it.
    """
    try:
        text.set_attn_implementation(attention)
        found = text.config._attn_implementation
    except (ValueError, ImportError) as error:
        found = " ".join(str(error).split())[:200]
    if found != attention:
        raise ModelError(
            f"`model.attention` must be one that the language part of {source} can use, but is {attention} instead "
            f"({found}). Set model.attention=sdpa."
        )
    return text
