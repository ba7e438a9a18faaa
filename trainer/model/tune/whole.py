"""Modules that train whole beside an adapter: peft's `modules_to_save`, without its copies.

peft trains a copy of each module and keeps the original; here the module itself trains, which needs no second matrix
and works under every ZeRO stage. The tensors are saved under the names that peft gives its copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from trainer.errors import ConfigError
from trainer.model.scorer import output_layer


def train_whole(model: Any, asked: Sequence[str], adapted: Sequence[str]) -> list[str]:
    """Let the named modules train, in place, and return their full names; of two tied ones, both.

    Raises:
        ConfigError: A name finds no module with parameters, or one with an adapter.
    """
    known = {name: module for name, module in model.named_modules() if name and ".lora_" not in name}
    chosen: list[str] = []
    for word in asked:
        hits = [name for name in known if name == word or name.endswith(f".{word}")]
        if not any(list(known[name].parameters()) for name in hits):
            kinds = sorted({name.rsplit(".", 1)[-1] for name in known} - {"base_layer", "default"})
            usual = [kind for kind in kinds if kind in ("lm_head", "embed_tokens", "norm")] or kinds[:8]
            raise ConfigError(
                f"`tune.modules_to_save` must name modules of the model ({', '.join(usual)}, ...), but {word!r} finds "
                "none instead. Set tune.modules_to_save=[lm_head], or leave it out."
            )
        both = [name for name in hits if any(_overlap(name, other) for other in adapted)]
        if both:
            raise ConfigError(
                f"`tune.modules_to_save` must leave out what tune.target adapts, but {word!r} finds {both[0]} instead. "
                "Name the module in one of the two."
            )
        chosen += [name for name in hits if name not in chosen]
    chosen = _with_tied(model, chosen)
    for name in chosen:
        for parameter in known[name].parameters():
            parameter.requires_grad_(True)
    return chosen


def with_tied_copies(tensors: dict[str, Tensor], peft_config: Any) -> dict[str, Tensor]:
    """Return the tensors with one matrix under both names where a tied head trained whole."""
    names = [f"{module}.weight" for module in getattr(peft_config, "modules_to_save", None) or ()]
    head = next((name for name in names if name not in tensors), None)
    tied = [name for name in names if name in tensors and name.endswith("embed_tokens.weight")]
    return tensors if head is None or not tied else tensors | {head: tensors[tied[0]]}


def _with_tied(model: Any, chosen: list[str]) -> list[str]:
    """Add the module whose weight is that of a chosen one."""
    names = {id(module): name for name, module in model.named_modules()}
    embed, head = model.get_input_embeddings(), output_layer(model)
    if head is None or head.weight is not embed.weight:
        return chosen
    pair = [names[id(embed)], names[id(head)]]
    return [*(name for name in chosen if name not in pair), *pair] if set(pair) & set(chosen) else chosen


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")
