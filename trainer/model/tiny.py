"""Make the `tiny` model: random weights and a byte-level tokenizer, for tests and debugging."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from trainer.errors import ModelError
from trainer.runtime.disk import disk_errno
from trainer.runtime.publish import publish_folder
from trainer.runtime.seal import file_digest, read_sealed, sealed_text

_LOG = logging.getLogger(__name__)

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MADE = "made.json"
"""Digests of the other files of a folder."""
CONTEXT = 8192
"""Tokens that its configuration says it was made for."""
VOCAB = 264
SPECIALS = ("<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>")


def tiny_model_dir(cache_dir: Path, shape: dict[str, int], seed: int) -> Path:
    """Return the folder of the tiny model, made on the first call."""
    key = json.dumps([shape, seed, CHATML, SPECIALS], sort_keys=True)
    target = cache_dir / "models" / f"tiny-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if _is_there(target):
        return target

    if target.exists():
        _LOG.warning("The tiny model in %s is not as it was made: it is made again.", target)

    def fill(folder: Path) -> None:
        build_tokenizer().save_pretrained(folder)
        _save_model(folder, shape, seed)
        files = {path.name: file_digest(path) for path in folder.iterdir()}
        (folder / MADE).write_text(sealed_text({"files": files}), encoding="utf-8")

    try:
        publish_folder(target, fill, keeps=_is_there)
    except Exception as error:  # tokenizers and safetensors have kinds of their own for what the disk says
        number = error.errno if isinstance(error, OSError) else disk_errno(error)
        if number is None:
            raise
        raise ModelError(
            f"The tiny model cannot be written to {target}: {os.strerror(number)}. Set data.cache_dir."
        ) from error
    return target


def _is_there(folder: Path) -> bool:
    """Tell whether the folder holds every file as it was made."""
    try:
        files = read_sealed(folder / MADE)["files"]
        return all(file_digest(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError):
        return False


def build_tokenizer() -> Any:
    """Return a byte-level tokenizer of 256 bytes and four special tokens, with a ChatML template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIALS, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|pad|>", eos_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def _save_model(folder: Path, shape: dict[str, int], seed: int) -> None:
    import torch

    from trainer.model.lean import import_models

    import_models()
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = LlamaConfig(
        vocab_size=VOCAB,
        max_position_embeddings=CONTEXT,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        **shape,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
