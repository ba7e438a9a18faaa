"""New tokens: rows of the embeddings that train beside an adapter, while the matrix they extend stays frozen.

peft's `trainable_token_indices` resizes the matrix and copies all of it into every forward. Here the rows stand beside
it: an embedding looks its new tokens up in them, and the output layer multiplies by both, so that nothing of the base
is resized or changed and every ZeRO stage works. They are saved under peft's names.

Shapes: K new tokens, H hidden, V rows of the matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from trainer.errors import ConfigError, ModelError

ROWS = "rows"
"""Name of the parameter that each of the two layers has beside its weight."""
PEFT_ROWS = "token_adapter.trainable_tokens_delta"


@dataclass(frozen=True, slots=True)
class NewTokens:
    """Ids of the new tokens, which follow each other, and the tokens that each was spelled with before."""

    first_id: int
    pieces: tuple[tuple[int, ...], ...]

    @property
    def ids(self) -> list[int]:
        """Return the ids."""
        return list(range(self.first_id, self.first_id + len(self.pieces)))


def add_to_tokenizer(hf: Any, new_tokens: Sequence[str]) -> NewTokens:
    """Add tokens behind all that are there; remember what spelled them before.

    Raises:
        ConfigError: One is empty, named twice, or there already.
        ModelError: They do not get the ids behind all others.
    """
    from transformers import AddedToken

    known = hf.get_vocab()
    for index, token in enumerate(new_tokens):
        problem = "it is empty" if not token.strip() else None
        problem = "it is named twice" if token in new_tokens[:index] else problem
        problem = f"the tokenizer has it, with id {known[token]}" if token in known else problem
        if problem is not None:
            raise ConfigError(
                f"`model.new_tokens` must be tokens that the tokenizer does not have, but is {token!r} instead: "
                f"{problem}. Leave it out."
            )
    pieces = tuple(tuple(hf(token, add_special_tokens=False)["input_ids"]) for token in new_tokens)
    first_id = int(max(known.values())) + 1
    hf.add_tokens([AddedToken(token, normalized=False) for token in new_tokens])
    ids = hf.convert_tokens_to_ids(list(new_tokens))
    if ids != list(range(first_id, first_id + len(new_tokens))):
        raise ModelError(
            f"`model.new_tokens` must get the ids from {first_id} on, but the tokenizer gives {ids} instead. Use a "
            "tokenizer without gaps."
        )
    return NewTokens(first_id, pieces)


class GrownEmbedding(nn.Embedding):
    """An embedding with rows of its own for new tokens; made by `add_new_tokens`."""

    rows: nn.Parameter
    first_id: int

    def forward(self, input: Tensor) -> Tensor:
        """Return embeddings; the frozen matrix is not asked for new tokens, whose ids it may not have."""
        is_new = (input >= self.first_id) & (input < self.first_id + len(self.rows))
        old = super().forward(input.masked_fill(is_new, 0))
        new = nn.functional.embedding((input - self.first_id).clamp(0, len(self.rows) - 1), self.rows)
        return torch.where(is_new[..., None], new, old)


def add_new_tokens(model: Any, new: NewTokens) -> dict[str, list[int]]:
    """Give the embeddings and an untied output layer rows that train, in place; return layer -> ids, as peft has it.

    Each row begins as the mean of the rows of the tokens that spelled it. Under ZeRO-3 collective, and peft must have
    been told of it.

    Raises:
        ConfigError: The layers are not plain, train whole already, or lack the tokens before the new ones.
    """
    from peft.utils.integrations import gather_params_ctx

    embed, head = model.get_input_embeddings(), model.get_output_embeddings()
    _check(model, embed, head, new)
    layers = [embed] if head.weight is embed.weight else [embed, head]
    for layer in layers:
        weight = layer.weight
        with gather_params_ctx([weight]):
            means = [weight.detach()[list(pieces)].float().mean(dim=0) for pieces in new.pieces]
        rows = nn.Parameter(torch.stack(means).to(weight.dtype))
        layer.register_parameter(ROWS, rows)
        layer.first_id = new.first_id
    if len(layers) == 1:
        head.register_parameter(ROWS, embed.rows)
        head.first_id = new.first_id
    embed.__class__ = GrownEmbedding
    names = {id(module): name for name, module in model.named_modules()}
    return {names[id(layer)]: new.ids for layer in layers}


def grown(weight: Tensor, rows: Tensor, first_id: int) -> Tensor:
    """Return the matrix with the rows in their places: over those that are there, the others behind."""
    return torch.cat([weight[:first_id], rows.to(weight.dtype), weight[first_id + len(rows) :]])


def vocabulary(num_rows: int, ids: Sequence[int]) -> int:
    """Return the rows that a matrix has with new tokens."""
    return max(num_rows, max(ids, default=-1) + 1)


def _check(model: Any, embed: Any, head: Any, new: NewTokens) -> None:
    num_rows = int(model.config.get_text_config().vocab_size)
    is_plain = type(embed) is nn.Embedding and type(head) is nn.Linear and head.bias is None
    if not is_plain:
        raise ConfigError(
            "`model.new_tokens` must be empty for a model whose embeddings or output layer are not plain, but is given "
            f"for {model.config.model_type} ({type(embed).__name__}, {type(head).__name__}) instead. Use tokens that "
            "the tokenizer has."
        )
    if cast(nn.Parameter, embed.weight).requires_grad or cast(nn.Parameter, head.weight).requires_grad:
        raise ConfigError(
            "`tune.modules_to_save` must leave out embed_tokens and lm_head with model.new_tokens, but names one of "
            "them instead. Name them there and add the tokens to the base model yourself, or leave them out."
        )
    if new.first_id > num_rows:
        raise ConfigError(
            f"`model.new_tokens` must follow tokens that the model has rows for ({num_rows}), but the tokenizer "
            f"alone has {new.first_id} instead. Use the model's own tokenizer."
        )
