"""Masks for layers that do not see everything: from the one mask of a batch, one for every kind of layer.

transformers hands a ready mask through unchanged, to layers with a window too, so the window has to be in it.

Source: which value of `layer_types` wants which mask: transformers 5.24 `masking_utils.py`.
Shapes: B rows, Q queries, K keys.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

FULL = ("full_attention", "indexed_attention", "minimax_m3_sparse")
SLIDING = ("sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention")
CHUNKED = ("chunked_attention",)
_RECURRENT = ("linear_attention", "conv")
"""Layers that take a mask of padding or none, never one of pairs."""
_SPANS = (
    *("window", "chunk", "local_att", "block_size", "index_topk", "compress_rate"),
    *("conv_kernel", "conv1d", "d_conv", "l_cache"),
)
"""Words in the keys of how far layers look back, or of how much they handle at once."""


def block_mask(segments_BT: Tensor) -> Tensor:
    """Return the mask under which a token sees itself and earlier tokens of its own document.

    Shapes: [B, 1, T, T] bool, True where attention is allowed.
    """
    same = segments_BT[:, None, :, None] == segments_BT[:, None, None, :]
    seq_len = segments_BT.shape[1]
    causal = torch.ones(seq_len, seq_len, dtype=torch.bool, device=segments_BT.device).tril()
    return same & causal


def with_prefixes(
    mask: Tensor, segments_BT: Tensor, positions_BT: Tensor, first_BT: Tensor, prefix_BT: Tensor
) -> Tensor:
    """Return the mask under which branches also see the beginning of the first segment of their unit.

    Shapes: [B, 1, T, T] bool.

    Args:
        mask: Of `block_mask`.
        first_BT: That segment, of each token.
        prefix_BT: How many of its tokens each token sees; 0 where it is no branch.
    """
    of_first = first_BT[:, None, :, None] == segments_BT[:, None, None, :]
    is_near = positions_BT[:, None, None, :] < prefix_BT[:, None, :, None]
    return mask | (of_first & is_near)


def layer_masks(
    hf_config: Any, mask: Tensor, positions_BT: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor | dict[str, Tensor | None]:
    """Return what the model's body takes as `attention_mask`: one mask, or one by kind of layer.

    Eager attention adds its mask to the scores, in `dtype`; one of truth values would mask nothing there.

    A kind that is not known here gets what it got before there were windows, the mask as it is; the proof at the start
    of a run compares the outcome with the model's own.

    Args:
        mask: Who sees whom within documents, [B, 1, T, T] bool.
        positions_BT: Place of each token in its document, from which windows and chunks are counted.
    """
    config = hf_config.get_text_config()
    masks = _by_layer(config, mask, positions_BT)
    if getattr(config, "_attn_implementation", None) != "eager":
        return masks
    if isinstance(masks, Tensor):
        return _added(masks, dtype)
    added = {id(each): _added(each, dtype) for each in masks.values() if each is not None}
    return {kind: None if each is None else added[id(each)] for kind, each in masks.items()}


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to scores: 0 where attention is allowed, the least number elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(
        ~mask, torch.finfo(dtype).min
    )


def _by_layer(config: Any, mask: Tensor, positions_BT: Tensor) -> Tensor | dict[str, Tensor | None]:
    kinds = layer_kinds(config)
    window, chunk = _size(config, "sliding_window"), _size(config, "attention_chunk_size")
    if kinds is None:
        if window is not None:
            return _within_window(mask, positions_BT, window)
        return mask if chunk is None else _within_chunk(mask, positions_BT, chunk)
    if not kinds <= {*FULL, *SLIDING, *CHUNKED, *_RECURRENT}:
        return mask
    masks: dict[str, Tensor | None] = {}
    for kind in kinds:
        if kind in SLIDING and window is not None:
            masks[kind] = _within_window(mask, positions_BT, window)
        elif kind in CHUNKED and chunk is not None:
            masks[kind] = _within_chunk(mask, positions_BT, chunk)
        else:
            masks[kind] = None if kind in _RECURRENT else mask
    return masks


def layer_kinds(hf_config: Any) -> set[str] | None:
    """Return the values of `layer_types`; None for an architecture whose layers are all alike."""
    kinds = getattr(hf_config, "layer_types", None) if _declares(hf_config, "layer_types") else None
    return set(kinds) if kinds else None


def reach(hf_config: Any, below: int | None = None) -> int:
    """Return the tokens of the longest window, chunk or convolution that the configuration names; 0 without one.

    Read from every whole number whose key says so, used or not: a longer probe costs little.

    Args:
        below: Leave out those of so many tokens and more: a number that nothing uses, such as the length of a chunk in
            generation, must not hide a window that packs are longer than.
    """
    found: list[int] = []
    _spans(hf_config.get_text_config().to_dict(), False, found)
    return max((span for span in found if below is None or span < below), default=0)


def _spans(value: Any, is_span: bool, found: list[int]) -> None:
    """Collect the whole numbers under keys that tell of a span, in lists and dictionaries too."""
    if isinstance(value, dict):
        for key, inner in value.items():
            says_so = any(word in str(key).lower() for word in _SPANS) and "layers" not in str(key)
            _spans(inner, is_span or says_so, found)
    elif isinstance(value, list | tuple):
        for inner in value:
            _spans(inner, is_span, found)
    elif is_span and isinstance(value, int) and not isinstance(value, bool):
        found.append(value)


def _declares(config: Any, key: str) -> bool:
    """Tell whether an architecture has a key; some folders carry one of another, which nothing reads."""
    classes = type(config).__mro__
    return any(key in vars(cls).get("__annotations__", {}) for cls in classes) or (
        key in inspect.signature(type(config).__init__).parameters
    )


def _size(config: Any, key: str) -> int | None:
    value = getattr(config, key, None) if _declares(config, key) else None
    return value if isinstance(value, int) and value > 0 else None


def _within_window(mask: Tensor, positions_BT: Tensor, window: int) -> Tensor:
    if window >= positions_BT.shape[1]:
        return mask
    return mask & (positions_BT[:, None, :, None] < positions_BT[:, None, None, :] + window)


def _within_chunk(mask: Tensor, positions_BT: Tensor, chunk: int) -> Tensor:
    if chunk >= positions_BT.shape[1]:
        return mask
    number_BT = positions_BT // chunk
    return mask & (number_BT[:, None, :, None] == number_BT[:, None, None, :])
