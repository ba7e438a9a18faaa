"""Load a causal model with its weights, or refuse: never train random weights unnoticed."""

from __future__ import annotations

import contextlib
import pickle
import re
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError

from trainer.config.model import ModelConfig, ModelKind
from trainer.config.tune import Quantise
from trainer.errors import ModelError
from trainer.model.attention import AttentionChoice
from trainer.model.exact_routers import make_routers_exact
from trainer.model.kernels import leave_out_kernels
from trainer.model.lean import import_models
from trainer.model.multimodal import text_config_of, text_part, whole_class
from trainer.model.own_code import OwnCode
from trainer.model.packed import fit_nf4, now_whole, packing_of, reading_nf4, unpacking
from trainer.model.packed_pairs import check_scales
from trainer.model.packing_kind import is_nf4
from trainer.model.tensor_files import weight_files
from trainer.model.tune.quantise import adopt, is_packed, load_arguments, num_weights, pack

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
    check_causal(config, source, bool(model.trust_remote_code and getattr(config, "auto_map", None)))
    return config


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
            "...ForCausalLM model, or one that has such a model as its text part."
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
    whole = read_whole_config(source, model)
    config, packing = trained_part(whole), packing_of(whole)
    check_scales(source, model, packing)
    packs_now = quantise is not Quantise.none
    shards_now = zero3_config is not None and not packs_now
    keep_alive = announce_zero3(zero3_config if shards_now else None)
    arguments: dict[str, Any] = {
        "dtype": _DTYPES[dtype],
        "attn_implementation": attention.name,
        "trust_remote_code": model.trust_remote_code,
    }
    if model.kind is ModelKind.random:
        loaded = _make_random(config, arguments, model.seed, shards_now, device)
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
        _check_shapes(loaded, config, model.trust_remote_code)
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
    _settle_layers(loaded, dtype == "bf16" and model.router_float32, device)
    count = sum(map(num_weights, loaded.parameters()))
    return LoadedModel(loaded, attention, source, count, OwnCode(loaded))


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
    config: Any, arguments: dict[str, Any], seed: int, sharded: bool, device: torch.device
) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    place = contextlib.nullcontext() if sharded else device
    with place:
        return AutoModelForCausalLM.from_config(config, **arguments)


def _load_pretrained(
    source: str, model: ModelConfig, arguments: dict[str, Any], direct: bool, device: torch.device
) -> Any:
    """Return the causal model of the files; of a model that also sees or hears, its language part alone."""
    from transformers import AutoModelForCausalLM

    if direct and device.type == "cuda":
        arguments = arguments | {"device_map": {"": str(device)}}
    whole, attention = whole_class(read_whole_config(source, model)), arguments["attn_implementation"]
    if whole is not None:  # what sees may refuse an attention that the language part can do
        arguments = arguments | {"attn_implementation": "eager"}
    try:
        loaded, info = (whole or AutoModelForCausalLM).from_pretrained(
            # Mismatched sizes are reported, and refused below, instead of raised as a bare RuntimeError.
            source,
            revision=model.revision,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
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
            f"{_in_shards('Get the files again')}, or name another model.path."
        ) from error
    problems = {
        kind: sorted(str(key) for key in info.get(kind) or [])
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    }
    problems["missing_keys"] = [key for key in problems["missing_keys"] if key not in _tied_names(loaded)]
    if not problems["unexpected_keys"] and "quantization_config" not in arguments:
        problems["unexpected_keys"] = _unexpected_in_files(source, loaded)
    broken = {kind: keys for kind, keys in problems.items() if keys}
    if broken:
        kind, keys = next(iter(broken.items()))
        raise ModelError(
            f"The weights of {source} must match the model exactly, but there are {kind.replace('_', ' ')}: "
            f"{', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''}. The run would train random weights; "
            f"{_in_shards('use files that fit this transformers version')}."
        )
    return loaded if whole is None else _with_attention(text_part(loaded), attention, source)


def _in_shards(fix: str) -> str:
    """Return a fix, and another where weights are read in shards, for which transformers has other code."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    return f"{fix}, or set zero.stage=2" if is_deepspeed_zero3_enabled() else fix


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


def _check_shapes(loaded: Any, config: Any, trust_remote_code: bool) -> None:
    """Compare what is not packed with the architecture: beside packed weights transformers 5.17 takes any shape.

    Raises:
        ModelError: A tensor of another shape than the model's.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    meant = {name: parameter.shape for name, parameter in built.named_parameters()}
    for name, parameter in loaded.named_parameters():
        if not is_packed(parameter) and parameter.shape != meant.get(name, parameter.shape):
            raise ModelError(
                f"The weights of the model must match it exactly, but there are mismatched keys: {name} is "
                f"{list(parameter.shape)} in the files and {list(meant[name])} in the model. Use files that fit this "
                "transformers version."
            )


def _tied_names(model: Any) -> set[str]:
    # The empty answer of an untied model counts: its class names the head all the same.
    tied = getattr(model, "all_tied_weights_keys", getattr(model, "_tied_weights_keys", None))
    return set(tied or ())


def _unexpected_in_files(source: str, model: Any) -> list[str]:
    """Return tensors that the files hold and the model does not; ZeRO-3 loading reports none itself."""
    names = weight_files(source)
    if not names or _is_converted(model):
        return []
    known = set(model.state_dict().keys()) | _tied_names(model)
    prefix = f"{model.base_model_prefix}."
    ignorable = re.compile(
        "|".join([r"rotary_emb\.inv_freq$", *(model._keys_to_ignore_on_load_unexpected or ())])
    )
    return sorted(
        name
        for name in names
        if name not in known and prefix + name not in known and not ignorable.search(name)
    )


def _is_converted(model: Any) -> bool:
    """Tell whether transformers renames or merges tensors of this class, or of a part of it, while loading."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    return bool(get_model_conversion_mapping(model, add_legacy=False))
