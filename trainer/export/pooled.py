"""What is of a reward model alone in an exported folder: with what batches are filled, and reading its scores back.

Shapes: T tokens of a document.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from trainer.config.model import ModelConfig, ModelHead
from trainer.errors import SelfCheckError
from trainer.model.scorer import KIND, SCORE
from trainer.model.tokenizer import Tokenizer, configured_tokenizer


def fill_of(tokenizer: Tokenizer) -> int | None:
    """Return a token to fill batches of a reward model with: one that no text ends with; None without one.

    transformers scores the last token that is no padding: were that what ends answers, it would score the one before.
    """
    unknown = tokenizer.hf.unk_token_id  # a text may end with it
    ends = {tokenizer.eos_id, tokenizer.turn_end_id, unknown}
    tried = (*tokenizer.spare_ids(), tokenizer.bos_id)
    return next((one for one in tried if one is not None and one not in ends), None)


def fill_with(tokenizer: Tokenizer, token_id: int | None) -> None:
    """Let a tokenizer fill batches with a token."""
    if token_id is not None:
        tokenizer.hf.pad_token = tokenizer.hf.convert_ids_to_tokens(token_id)


def told_pad(pad_id: int | None, folder: Path) -> str:
    """Say with what batches of a reward model are filled."""
    if pad_id is None:
        return (
            "The tokenizer has no token to fill batches with that ends no text: score one text at a time, for "
            "transformers scores the last token that is no padding."
        )
    shown = configured_tokenizer(ModelConfig(), str(folder)).decode([pad_id])
    why = "transformers scores the last token that is no padding"
    return f"Batches are filled with {shown}, which ends no text: {why}."


def head_of_folder(folder: Path) -> ModelHead:
    """Return what a folder's config.json says is behind the final norm."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ModelHead.language  # who loads it says what is wrong
    is_scored = any(KIND in str(name) for name in found.get("architectures") or ())
    return ModelHead.score if is_scored else ModelHead.language


def written_dtype(folder: Path) -> str:
    """Return the type of the tensors of a folder, as torch names it."""
    file = next(iter(sorted(folder.glob("*.safetensors"))), None)
    if file is None:
        return "float32"
    with safe_open(str(file), framework="pt") as tensors:
        first = next(iter(tensors.keys()))
        return str(tensors.get_tensor(first).dtype).removeprefix("torch.")


@contextlib.contextmanager
def scoring(model: nn.Module) -> Iterator[list[Tensor] | None]:
    """Note the score of every token of what a reward model reads meanwhile; None for a language model."""
    layer = getattr(model, SCORE, None)
    if not isinstance(layer, nn.Module):
        yield None
        return
    seen: list[Tensor] = []

    def note(module: nn.Module, args: Any, given: Tensor) -> None:
        seen.append(given)

    hook = layer.register_forward_hook(note)
    try:
        yield seen
    finally:
        hook.remove()


def scores_of(seen: list[Tensor], pooled: Tensor, folder: Path) -> Tensor:
    """Return the scores of all tokens of one document [T, 1], float32.

    Args:
        pooled: What the model's own forward gives [1, 1].
    Raises:
        SelfCheckError: That is not the score of the last token.
    """
    scores_T1 = seen[-1][0]
    if not torch.equal(pooled[0], scores_T1[-1]):
        raise SelfCheckError(
            f"The exported folder {folder} must score the last token of a text, but scores another. Its pad_token_id "
            "is that of the text's end: report this with the tokenizer."
        )
    return scores_T1.float().cpu()
