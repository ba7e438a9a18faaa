"""Compares the tokenizer that made token ids with the one of this run: the same token must have the same id."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from trainer.config.model import ModelConfig
from trainer.errors import DataError
from trainer.model.on_disk import NOTHING_THERE, is_missing, no_maker
from trainer.model.tokenizer import Tokenizer


def check_made_with(key: str, name: str, model: ModelConfig, tokenizer: Tokenizer) -> None:
    """Raise unless every token of a named tokenizer has the same id in this run's, which may have more.

    Chat templates and special roles may differ, as those of a base model and its instruct model do.

    Raises:
        DataError: One has another id, or the tokenizer cannot be loaded.
    """
    if name in (model.tokenizer, model.path):
        return
    try:
        if is_missing(name):
            raise FileNotFoundError(NOTHING_THERE)
        made = AutoTokenizer.from_pretrained(
            str(Path(name).expanduser()), trust_remote_code=model.trust_remote_code
        )
    except Exception as error:  # transformers raises whatever its many parsers raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"`{key}` {no_maker(name, lines[0])}") from error
    here, there = tokenizer.hf.get_vocab(), made.get_vocab()
    other = sorted((there[token], token) for token in there if here.get(token) != there[token])
    if other:
        token_id, token = other[0]
        found = f"has it as {here[token]}" if token in here else "does not have it"
        raise DataError(
            f"`{key}` must name a tokenizer whose tokens have the same ids in this run's, but '{name}' has {token!r} "
            f"as id {token_id}, and this run's {found} ({len(other):,} of {len(there):,} tokens differ). Train with "
            "that model.tokenizer, or tokenise the text anew."
        )
