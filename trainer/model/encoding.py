"""Asks a Hugging Face tokenizer for token ids, by its Rust part alone where transformers adds nothing to it.

What transformers puts around each text, and offsets that nobody reads, were a quarter of preparing lines of a text and
of questions with answers.
Source: `benchmarks/prepare.py`, transformers 5.24, tokenizers 0.23.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

Offsets = list[tuple[int, int]]


def encode_ids(hf: Any, texts: list[str]) -> list[list[int]]:
    """Encode without adding special tokens; those spelled out in a text are recognised."""
    rust = _rust(hf)
    if rust is None:
        found: list[list[int]] = _call(hf, texts)["input_ids"]
        return found
    return [one.ids for one in rust.encode_batch_fast(texts, add_special_tokens=False)]


def encode_offsets(hf: Any, texts: list[str]) -> list[tuple[list[int], Offsets]]:
    """Encode like `encode_ids`, and give each token its characters [start, end)."""
    encoded = _call(hf, texts, return_offsets_mapping=True)
    return list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))


def encode_behind(hf: Any, texts: list[str], places: list[int]) -> list[tuple[list[int], int | None]]:
    """Encode like `encode_ids`, and count the tokens of each text that end before or at a place in it.

    Args:
        places: A character of each text.

    Returns:
        The ids and that number, where all tokens behind these end after the place; None where offsets have to tell.
    """
    rust = _rust(hf)
    if rust is None:
        return [(ids, None) for ids in encode_ids(hf, texts)]
    found = rust.encode_batch(texts, add_special_tokens=False)
    return [(one.ids, _num_before(one, place)) for one, place in zip(found, places, strict=True)]


def _num_before(encoding: Any, place: int) -> int | None:
    """Return the number of the first token that holds a character, as those before it are; None where it is not told.

    The offsets of a text's tokens ascend. Where the token that holds the character is the first one that ends behind
    it, the one before ends at it or before.
    """
    number: int | None = encoding.char_to_token(place)
    if number is None or number == 0:
        return number
    before = encoding.token_to_chars(number - 1)
    return None if before is None or before[1] > place else number


def _rust(hf: Any) -> Any:
    """Return the Rust part, set as a plain call sets it; None for a tokenizer without one or with ways of its own."""
    kind = type(hf)
    if not (
        isinstance(hf, PreTrainedTokenizerFast)
        and kind.__call__ is PreTrainedTokenizerBase.__call__
        and kind._encode_plus is PreTrainedTokenizerFast._encode_plus
    ):
        return None
    rust = hf.backend_tokenizer
    rust.no_truncation()
    rust.no_padding()
    rust.encode_special_tokens = hf.split_special_tokens
    return rust


def _call(hf: Any, texts: list[str], **options: Any) -> Any:
    # verbose=False: documents are longer than the model's context on purpose, packing cuts them.
    if not texts:
        return {"input_ids": [], "offset_mapping": []}
    return hf(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
        **options,
    )
