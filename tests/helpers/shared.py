"""Packs in which answers share a prompt beside the same as documents, and flash attention in plain torch."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.data.types import Pack

Unit = tuple[int, Sequence[int]]
"""Tokens of a prompt and of each answer to it."""


def packs_of(units: Sequence[Unit], vocab_size: int, seed: int = 0) -> tuple[Pack, list[Pack]]:
    """Return one pack of units in which prompts are shared, and for each unit a pack of its whole documents."""
    rng = np.random.default_rng(seed)
    tokens: list[int] = []
    learnt: list[bool] = []
    lengths: list[int] = []
    prefixes: list[int] = []
    whole: list[Pack] = []
    for num_asked, answers in units:
        prompt = rng.integers(2, vocab_size, num_asked).tolist()
        documents = [prompt + rng.integers(2, vocab_size, count).tolist() for count in answers]
        marks = [[False] * num_asked + [True] * count for count in answers]
        whole.append(
            Pack(
                np.array(functools.reduce(operator.iadd, documents, [])),
                np.array(functools.reduce(operator.iadd, marks, [])),
                [len(document) for document in documents],
                [len(answers)],
            )
        )
        for number, (document, mark) in enumerate(zip(documents, marks, strict=True)):
            seen = num_asked - 1 if number else 0
            tokens += document[seen:]
            learnt += mark[seen:]
            lengths.append(len(document) - seen)
            prefixes.append(seen)
    counts = [len(answers) for _, answers in units]
    return Pack(np.array(tokens), np.array(learnt), lengths, counts, {}, prefixes), whole


def flash_in_torch(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend as the kernel does: document by document, the last query to all of its keys, each before it to one less.

    Takes [1, heads, N, size] and keys of another length; gives [1, N, heads, size].
    """
    assert attention_mask is None and query.shape[0] == 1
    options = {"cu_seq_lens_q": torch.tensor([0, query.shape[2]]), "max_length_q": query.shape[2]} | options
    options = {"cu_seq_lens_k": options["cu_seq_lens_q"], "max_length_k": options["max_length_q"]} | options
    bounds = [options[name].tolist() for name in ("cu_seq_lens_q", "cu_seq_lens_k")]
    assert bounds[0][-1] == query.shape[2] and bounds[1][-1] == key.shape[2] == value.shape[2]
    longest = [max(b - a for a, b in itertools.pairwise(ends)) for ends in bounds]
    assert longest == [options["max_length_q"], options["max_length_k"]]
    repeats = query.shape[1] // key.shape[1]
    found = []
    for index in range(len(bounds[0]) - 1):
        of_q, of_k = (slice(ends[index], ends[index + 1]) for ends in bounds)
        q, k, v = query[0, :, of_q], key[0, :, of_k], value[0, :, of_k]
        k, v = (each.repeat_interleave(repeats, 0) for each in (k, v))
        scores = q @ k.transpose(1, 2) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
        behind = torch.arange(k.shape[1]) - (torch.arange(q.shape[1]) + k.shape[1] - q.shape[1])[:, None]
        allowed = behind <= 0
        if sliding_window is not None:
            allowed &= behind > -sliding_window
        found.append(scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ v)
    return torch.cat(found, 1).transpose(0, 1)[None], None
