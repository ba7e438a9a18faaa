"""What of a model that was loaded is not what its files hold: missing, unexpected or mismatched tensors."""

from __future__ import annotations

import logging
import re
from typing import Any

import torch

from trainer.config.model import ModelHead
from trainer.errors import ModelError
from trainer.model.scorer import WEIGHT, is_classifier, left_out
from trainer.model.tensor_files import weight_files
from trainer.model.tune.quantise import is_packed

_LOG = logging.getLogger(__name__)


def check_names(loaded: Any, info: dict[str, Any], source: str, head: ModelHead, was_packed: bool) -> None:
    """Raise where names or shapes in the files are others than the model's.

    Args:
        info: What transformers says of loading.
        was_packed: The weights were packed as they were read.
    Raises:
        ModelError: Names the tensors.
    """
    problems = {
        kind: sorted(str(key) for key in info.get(kind) or [])
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    }
    problems["missing_keys"] = [key for key in problems["missing_keys"] if key not in _tied_names(loaded)]
    if not problems["unexpected_keys"] and not was_packed:
        problems["unexpected_keys"] = _unexpected_in_files(source, loaded)
    if head is ModelHead.score and not is_classifier(loaded.config):
        leave_out_head(source, loaded, problems)
    broken = {kind: keys for kind, keys in problems.items() if keys}
    if broken:
        kind, keys = next(iter(broken.items()))
        raise ModelError(
            f"The weights of {source} must match the model exactly, but there are {kind.replace('_', ' ')}: "
            f"{', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''}. The run would train random weights; "
            f"{in_shards('use files that fit this transformers version')}."
        )


def in_shards(fix: str) -> str:
    """Return a fix, and another where weights are read in shards, for which transformers has other code."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    return f"{fix}, or set zero.stage=2" if is_deepspeed_zero3_enabled() else fix


def leave_out_head(source: str, loaded: Any, problems: dict[str, Any]) -> None:
    """Take from the problems, in place, what a reward model lacks of a language model, and say what that is."""
    problems["missing_keys"] = [key for key in problems["missing_keys"] if key != WEIGHT]
    found = left_out(problems["unexpected_keys"], loaded.base_model_prefix)
    problems["unexpected_keys"] = [key for key in problems["unexpected_keys"] if key not in found]
    if found:
        _LOG.info("A reward model has no output layer: %s of %s is left out.", ", ".join(found), source)


def check_shapes(loaded: Any, config: Any, trust_remote_code: bool) -> None:
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
