"""The parts of a Hugging Face folder that are not weights, and reading such a folder back."""

from __future__ import annotations

import contextlib
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.config.model import ModelConfig, ModelHead
from trainer.errors import ModelError, SelfCheckError
from trainer.export.merge import WEIGHTS, read_adapter
from trainer.export.pooled import (
    fill_of,
    fill_with,
    head_of_folder,
    scores_of,
    scoring,
    told_pad,
    written_dtype,
)
from trainer.model.attention import caps_scores
from trainer.model.lean import import_peft
from trainer.model.load import read_config, read_whole_config
from trainer.model.load_problems import leave_out_head
from trainer.model.multimodal import text_part, whole_class
from trainer.model.packed import forget_packing
from trainer.model.processor import processor_files
from trainer.model.scorer import auto_arguments, auto_class
from trainer.model.tokenizer import configured_tokenizer
from trainer.model.tune.adapters import SCORED
from trainer.model.tune.new_tokens import vocabulary
from trainer.model.tune.quantise import keep_right, load_arguments, use_float32


def write_model_files(
    source: str,
    model: ModelConfig,
    dtype: str,
    say: Callable[[str], None],
    folder: Path,
    is_whole: bool = False,
) -> None:
    """Write config, generation config, tokenizer and chat template beside exported weights.

    Args:
        say: Told of the token that ends answers in the chat template, if generation did not stop at it.
        is_whole: The folder also sees or hears as the base does, and gets what prepares its inputs.
    """
    config = read_whole_config(source, model) if is_whole else read_config(source, model)
    forget_packing(config)
    text = config.get_text_config()
    config.dtype = text.dtype = dtype
    text.use_cache = True
    num_ids = write_tokenizer(source, model, folder)
    if model.new_tokens:
        text.vocab_size = max(text.vocab_size, num_ids)
    if model.head is ModelHead.score:
        text.pad_token_id = fill_of(configured_tokenizer(model, source))
    config.save_pretrained(folder)
    if model.head is ModelHead.score:
        say(told_pad(text.pad_token_id, folder))
        return
    for path in processor_files(source, model) if is_whole else ():
        shutil.copy(path, folder)
    generation, stops, end = _stops(source, model, config, folder)
    if end is not None:
        generation.eos_token_id = stops
        say(f"Generation also stops at {end}, which ends answers in the chat template.")
    generation.save_pretrained(folder)


def say_stops(source: str, model: ModelConfig, say: Callable[[str], None], folder: Path) -> None:
    """Tell of the token that ends answers where the base does not stop at it: no file beside an adapter can say so.

    Args:
        folder: Of the adapter, with its tokenizer.
    """
    if model.head is ModelHead.score:
        pad_id = fill_of(configured_tokenizer(model, source))
        say(f"{told_pad(pad_id, folder)} Load the base with num_labels=1 and pad_token_id={pad_id}.")
        return
    _, stops, end = _stops(source, model, read_config(source, model), folder)
    if end is not None:
        listed = ", ".join(map(str, stops))
        say(
            f"Generation must also stop at {end}, which ends answers in the chat template: the base does not, and "
            f"peft and vLLM take generation_config.json from the base. Give eos_token_id=[{listed}] to generate(), or "
            f"stop_token_ids=[{stops[-1]}] to vLLM."
        )


def _stops(source: str, model: ModelConfig, config: Any, folder: Path) -> tuple[Any, list[int], str | None]:
    """Return the base's generation config, where generation must stop, and what is added for that; None for nothing."""
    from transformers import GenerationConfig

    try:
        generation = GenerationConfig.from_pretrained(source, revision=model.revision)
    except OSError:
        generation = GenerationConfig.from_model_config(config)
    written = configured_tokenizer(ModelConfig(trust_remote_code=model.trust_remote_code), str(folder))
    end, stops = written.turn_end_id, generation.eos_token_id
    stops = [stops] if isinstance(stops, int) else list(stops or [])
    if end is None or end in stops:
        return generation, stops, None
    return generation, [*stops, end], written.turn_end


def write_tokenizer(source: str, model: ModelConfig, folder: Path) -> int:
    """Write tokenizer and chat template; return its largest id plus one."""
    tokenizer = configured_tokenizer(model, source)
    if model.head is ModelHead.score:
        fill_with(tokenizer, fill_of(tokenizer))
    tokenizer.save(folder)
    return tokenizer.vocab_size


def folder_logits(
    folder: Path, tokens_T: torch.Tensor, dtype: str, trust_remote_code: bool, is_packed: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Load a folder as any user would; return its logits on one document, [T, V] float32, computed twice.

    First in `dtype`, then with the same weights in float32 arithmetic: how far the two are apart is what
    rounding does to this model on this text. One tensor at a time is widened.

    Args:
        is_packed: The folder is an adapter, and its base is read into 4 bits.
    """
    model = _load_adapter(folder, dtype, trust_remote_code, is_packed)
    has_adapter = model is not None
    if model is None:
        model = _text_of(_load_whole(folder, dtype, trust_remote_code, head_of_folder(folder)))
    if not is_packed:  # what is packed was put where it stays
        model = model.to(_device_for(model))
    model.eval()

    def compute() -> torch.Tensor:
        with torch.no_grad(), scoring(model) as seen:
            logits = model(input_ids=tokens_T[None].to(model.device), use_cache=False).logits
        if seen is not None:
            return scores_of(seen, logits, folder)
        return torch.as_tensor(logits[0]).float().cpu()

    rounded_TV = compute()
    if model.dtype is torch.float32:
        return rounded_TV, rounded_TV
    if is_packed:
        model = use_float32(model)
        return rounded_TV, compute()
    if has_adapter:  # its layers narrow what they are given to their own weights' dtype, so all are widened
        model = model.float()
        return rounded_TV, compute()
    with _float32_arithmetic(model):
        return rounded_TV, compute()


def how_to_load(source: str, model: ModelConfig) -> str | None:
    """Say what a person has to give when they load a folder of this base; None if nothing."""
    from transformers import __version__

    if not caps_scores(read_config(source, model)):
        return None
    return (
        "Load it with attn_implementation='eager' or flash attention, as this comparison does: SDPA leaves out the "
        f"cap on attention scores that this model has, and transformers {__version__} may choose it by itself."
    )


def require_loads(folder: Path, tokens_T: torch.Tensor, dtype: str, trust_remote_code: bool) -> None:
    """Load a folder as any user would and raise if it gives no finite logits.

    Raises:
        SelfCheckError: They are not finite, or the folder does not load completely.
    """
    for logits_TV in folder_logits(folder, tokens_T, dtype, trust_remote_code):
        if not bool(torch.isfinite(logits_TV).all()):
            raise SelfCheckError(
                f"The exported folder {folder} must give finite logits, but does not. Do not use it; choose other "
                "weights."
            )


def load_scorer(folder: Path, trust_remote_code: bool) -> Any:
    """Load an exported reward model, whole or an adapter, as any user would; in the type that it was written in.

    Raises:
        ModelError: The folder holds a language model.
    """
    adapter = read_adapter(folder)
    is_scorer = head_of_folder(folder) is ModelHead.score if adapter is None else adapter.task_type == SCORED
    if not is_scorer:
        raise ModelError(
            f"Scores must be asked of a reward model, but {folder} is a language model instead. Train one with "
            "recipe=reward, and export it."
        )
    dtype = written_dtype(folder)
    model = _load_adapter(folder, dtype, trust_remote_code, is_packed=False)
    if model is None:
        model = _load_whole(folder, dtype, trust_remote_code, ModelHead.score)
    return model.to(_device_for(model)).eval()


def load_generator(folder: Path, trust_remote_code: bool) -> Any:
    """Load a folder with a language model, whole or an adapter, as any user would; in the type that it was written in.

    Raises:
        ModelError: It holds none.
    """
    is_there = any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))
    adapter = read_adapter(folder) if is_there else None
    if not is_there or (
        head_of_folder(folder) is ModelHead.score if adapter is None else adapter.task_type == SCORED
    ):
        found = "is a reward model" if is_there else "holds no model"
        raise ModelError(
            f"`evaluate.scores.generator` must be the folder of a language model, but {folder} {found} instead. Give "
            "the model that is to answer."
        )
    dtype = written_dtype(folder)
    model = _load_adapter(folder, dtype, trust_remote_code, is_packed=False)
    if model is None:
        model = _load_whole(folder, dtype, trust_remote_code)
    return model.to(_device_for(model)).eval()


def _load_whole(
    folder: Path,
    dtype: str,
    trust_remote_code: bool,
    head: ModelHead = ModelHead.language,
    is_base: bool = False,
    **arguments: Any,
) -> Any:
    """Load a folder as any user would.

    Args:
        is_base: It is the base of an adapter: what scores, or classified before, is not in it.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = read_whole_config(str(folder), ModelConfig(trust_remote_code=trust_remote_code, head=head))
    if caps_scores(config.get_text_config()):
        arguments["attn_implementation"] = "eager"
    model, info = (whole_class(config) or auto_class(head)).from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
        **auto_arguments(head),
        **arguments,
    )
    if head is ModelHead.score and is_base:
        leave_out_head(str(folder), model, info)
    broken = [k for k in ("missing_keys", "unexpected_keys", "mismatched_keys") if info.get(k)]
    if broken:
        raise SelfCheckError(
            f"The exported folder {folder} must load completely, but has {broken[0].replace('_', ' ')}: "
            f"{sorted(info[broken[0]])[:4]}."
        )
    return model


def _text_of(model: Any) -> Any:
    """Return what reads text in a model: of one that also sees or hears, the language part."""
    return model if whole_class(model.config) is None else text_part(model)


def _load_adapter(folder: Path, dtype: str, trust_remote_code: bool, is_packed: bool) -> Any:
    """Load an adapter folder in plain peft, on the base that it names; None if it is a whole model's."""
    import_peft()
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    described = read_adapter(folder)
    if described is None:
        return None
    head = ModelHead.score if described.task_type == SCORED else ModelHead.language
    source = Path(described.base_model_name_or_path)
    base: Any
    if is_packed:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        arguments = load_arguments(getattr(torch, dtype), device, is_sharded=False)
        base = keep_right(_load_whole(source, dtype, trust_remote_code, **arguments))
    else:
        base = _load_whole(source, dtype, trust_remote_code, head, is_base=True)
    new_ids = getattr(described, "trainable_token_indices", None) or {}
    num_rows = vocabulary(base.config.get_text_config().vocab_size, next(iter(new_ids.values()), ()))
    if num_rows > base.config.get_text_config().vocab_size:
        base.resize_token_embeddings(num_rows, mean_resizing=False)
    with warnings.catch_warnings():  # peft asks transformers by an older name
        warnings.simplefilter("ignore", FutureWarning)
        model = PeftModel.from_pretrained(base, str(folder), autocast_adapter_dtype=False)
    if is_packed:  # peft takes the adapter's dtype from the base's weights, which are bytes
        model = model.to(getattr(torch, dtype))
    # Without the matrices of a base resized for new tokens: the adapter holds their rows.
    loaded = get_peft_model_state_dict(model, save_embedding_layers=False)
    written = load_file(str(folder / WEIGHTS))
    wrong = [
        name
        for name, tensor in loaded.items()
        if name not in written or not torch.equal(written[name].to(tensor.dtype), tensor.cpu())
    ]
    if wrong or len(written) != len(loaded) or not any(bool(tensor.any()) for tensor in written.values()):
        raise SelfCheckError(
            f"The adapter in {folder} must load completely in peft, but {len(wrong)} of {len(loaded)} tensors differ"
            f"{f', such as {wrong[0]}' if wrong else ''}: transformers may rename them in this architecture. Set "
            "export.merge=true, which writes the whole model."
        )
    return model if model.active_peft_config.is_prompt_learning else _text_of(model.get_base_model())


def _device_for(model: nn.Module) -> str:
    """Return the GPU if the whole model fits on it, else the host."""
    if not torch.cuda.is_available():
        return "cpu"
    needed = sum(p.numel() * p.element_size() for p in model.parameters())
    return "cuda" if 1.2 * needed < torch.cuda.mem_get_info()[0] else "cpu"


@contextlib.contextmanager
def _float32_arithmetic(model: nn.Module) -> Iterator[None]:
    """Widen each module's own parameters while it runs; bf16 -> fp32 -> bf16 loses nothing."""
    dtypes = {p: p.dtype for p in model.parameters()}

    def widen(module: nn.Module, _: Any) -> None:
        for p in module.parameters(recurse=False):
            p.data = p.data.float()

    def narrow(module: nn.Module, _: Any, __: Any) -> None:
        for p in module.parameters(recurse=False):
            p.data = p.data.to(dtypes[p])

    owners = [m for m in model.modules() if next(m.parameters(recurse=False), None) is not None]
    hooks = [owner.register_forward_pre_hook(widen) for owner in owners]
    hooks += [owner.register_forward_hook(narrow) for owner in owners]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
