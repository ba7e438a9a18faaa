"""Virtual tokens before every document: prefix tuning (keys and values in each layer) and prompt tuning (embeddings).

The tables and their initialisation are peft's. Where peft puts them before a row, here they stand once before a pack
and every document attends to them: no virtual token attends to a document, so what a document computes is what it
would compute alone behind them, and documents still do not see each other.

Source: Li and Liang 2021 (arXiv:2101.00190); Lester et al. 2021 (arXiv:2104.08691).
Shapes: B rows, P virtual tokens, Q tokens given, K keys of them, H hidden, L layers, A key-value heads, D head width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from trainer.config.tune import Init, TuneConfig, TuneMethod
from trainer.errors import ConfigError
from trainer.model.lean import import_peft

ENCODER = "encoder.embedding.weight"
"""Name of the one table within its module."""


class VirtualTokens(nn.Module):
    """Puts virtual tokens before what a model is given; switched off, it changes nothing."""

    def __init__(self, encoder: nn.Module, embed: Any, peft_config: Any, is_prefix: bool) -> None:
        """Take peft's table and the function that embeds tokens."""
        super().__init__()
        self.encoder = encoder
        self.num_tokens = int(peft_config.num_virtual_tokens)
        self.is_off = False
        self.shift = 0.0
        """Added to the table, to find out who sees it."""
        self._is_prefix = is_prefix
        self._embed = embed
        self._shape = (2 * peft_config.num_layers, peft_config.num_attention_heads)

    def forward(self, inputs: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """Return the model's inputs with the virtual tokens in them, and how many hidden states they add in front.

        Adds columns to the mask, moves positions, and gives keys and values, or embeddings in place of tokens. A cache
        in `past_key_values` holds the documents' keys only behind a prefix, the prompt's too behind a prompt.
        """
        if self.is_off:
            return inputs, 0
        tokens_BQ: Tensor = inputs["input_ids"]
        cache = inputs.get("past_key_values")
        num_past = 0 if cache is None else int(cache.get_seq_length())
        adds_rows = not self._is_prefix and num_past == 0
        if not self._is_prefix:
            num_past = max(num_past - self.num_tokens, 0)
        mask = _seen(inputs.get("attention_mask"), tokens_BQ, num_past)
        positions_BQ = inputs.get("position_ids")
        if positions_BQ is None:
            positions_BQ = torch.arange(tokens_BQ.shape[1], device=tokens_BQ.device)[None] + num_past
        ids_P = torch.arange(self.num_tokens, device=tokens_BQ.device)
        table_P = self.encoder(ids_P) + self.shift if self.shift else self.encoder(ids_P)
        changed = inputs | {"position_ids": positions_BQ + self.num_tokens}
        if self._is_prefix:
            changed["past_key_values"] = PrefixCache(self._keys_and_values(table_P, len(tokens_BQ)), cache)
        elif adds_rows:
            prompt_BPH = table_P.to(self._dtype_of_rows()).expand(len(tokens_BQ), -1, -1)
            del changed["input_ids"]
            changed["inputs_embeds"] = torch.cat([prompt_BPH, self._embed(tokens_BQ)], dim=1)
            before = ids_P.expand(len(positions_BQ), -1)
            changed["position_ids"] = torch.cat([before, changed["position_ids"]], dim=1)
        changed["attention_mask"] = _with_virtual(mask, self.num_tokens, adds_rows)
        return changed, self.num_tokens if adds_rows else 0

    def _keys_and_values(self, table_P: Tensor, num_rows: int) -> Tensor:
        """Return [2 L, B, A, P, D]: key and value of each layer in turn, as peft lays them out."""
        by_layer = table_P.view(self.num_tokens, *self._shape, -1).permute(1, 2, 0, 3)
        return by_layer[:, None].expand(-1, num_rows, -1, -1, -1)

    def _dtype_of_rows(self) -> torch.dtype:
        return torch.as_tensor(self._embed.weight).dtype


class PrefixCache(Cache):  # type: ignore[misc]
    """Keys and values of the prefix before those of the documents; keeps nothing itself, so a layer may run twice."""

    def __init__(self, pairs: Tensor, documents: Any) -> None:
        """Take [2 L, B, A, P, D] and the documents' own cache, if there is one."""
        super().__init__(layers=[])
        self._pairs = pairs
        self._documents = documents

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Return all keys and values of a layer."""
        if self._documents is not None:
            key_states, value_states = self._documents.update(key_states, value_states, layer_idx)
        key, value = self._pairs[2 * layer_idx], self._pairs[2 * layer_idx + 1]
        return (
            torch.cat([key.to(key_states.dtype), key_states], dim=2),
            torch.cat([value.to(value_states.dtype), value_states], dim=2),
        )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the keys before those that come next."""
        past = 0 if self._documents is None else int(self._documents.get_seq_length(layer_idx))
        return past + int(self._pairs.shape[3])


def make_virtual_tokens(model: Any, tune: TuneConfig, seed: int) -> tuple[VirtualTokens, Any]:
    """Return the module and peft's description of it. Under ZeRO-3 collective; the same on every rank.

    Raises:
        ConfigError: The model has no room for the tokens, or keeps keys in a layout of its own.
    """
    import_peft()
    from peft import PrefixEncoder, PrefixTuningConfig, PromptEmbedding, PromptTuningConfig
    from peft.utils.other import _prepare_prompt_learning_config as fill_sizes

    is_prefix = tune.method is TuneMethod.prefix
    if not _takes_cache(model):
        raise ConfigError(
            f"`tune.method` must be another than prefix and prompt for {model.config.model_type}, some of whose layers "
            f"keep another memory than all keys and values, but is {tune.method.value} instead. Set tune=lora."
        )
    common = {"num_virtual_tokens": tune.virtual_tokens, "task_type": "CAUSAL_LM"}
    common["num_transformer_submodules"] = 1
    peft_config: Any
    if is_prefix:
        zero = "zero" if tune.init is Init.zero else None
        peft_config = PrefixTuningConfig(**common, init_weights=zero)
    else:
        kind = "RANDOM" if tune.init is Init.gaussian else "SAMPLE_VOCAB"
        peft_config = PromptTuningConfig(**common, prompt_tuning_init=kind)
    fill_sizes(peft_config, model.config)
    embed = model.get_input_embeddings()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = PrefixEncoder(peft_config) if is_prefix else PromptEmbedding(peft_config, embed)
    some = next(model.parameters())
    encoder.to(device=some.device, dtype=some.dtype)
    return VirtualTokens(encoder, _Reference(embed), peft_config, is_prefix), peft_config


@contextlib.contextmanager
def virtual_off(module: nn.Module) -> Iterator[None]:
    """Run without virtual tokens: as the base. Other adapters stay on."""
    found = [one for one in module.modules() if isinstance(one, VirtualTokens)]
    for one in found:
        one.is_off = True
    try:
        yield
    finally:
        for one in found:
            one.is_off = False


@contextlib.contextmanager
def virtual_shifted(module: nn.Module) -> Iterator[None]:
    """Run with other virtual tokens in the same places."""
    found = [one for one in module.modules() if isinstance(one, VirtualTokens)]
    for one in found:
        one.shift = 1.0
    try:
        yield
    finally:
        for one in found:
            one.shift = 0.0


class _Reference:
    """Holds the model's embedding layer without making it, and its weights, part of another module."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer

    def __call__(self, tokens: Tensor) -> Tensor:
        return torch.as_tensor(self._layer(tokens))

    @property
    def weight(self) -> Any:
        return self._layer.weight


def _takes_cache(model: Any) -> bool:
    """Tell whether every layer of the model keeps plain keys and values."""
    kinds = {type(layer).__name__ for layer in DynamicCache(config=model.config).layers}
    return kinds <= {"DynamicLayer"}


def _seen(mask: Tensor | None, tokens_BQ: Tensor, num_past: int) -> Tensor:
    """Return which earlier keys each token sees, [B or 1, 1, Q, K] bool; of a mask over keys, the causal part."""
    if mask is not None and mask.ndim == 4:
        return mask
    num_queries = tokens_BQ.shape[1]
    keys_K = torch.arange(num_past + num_queries, device=tokens_BQ.device)
    causal_QK = keys_K <= keys_K[num_past:, None]
    return causal_QK[None, None] if mask is None else causal_QK & mask.bool()[:, None, None]


def _with_virtual(mask: Tensor, num_virtual: int, adds_rows: bool) -> Tensor:
    """Let every token see the virtual ones; where these have rows of their own, each sees those up to itself."""
    rows, queries = mask.shape[0], mask.shape[2]
    wide = torch.cat([mask.new_ones(rows, 1, queries, num_virtual), mask], dim=3)
    if not adds_rows:
        return wide
    own = mask.new_ones(num_virtual, num_virtual).tril()
    above = torch.cat([own, mask.new_zeros(num_virtual, mask.shape[3])], dim=1)
    return torch.cat([above.expand(rows, 1, -1, -1), wide], dim=2)
