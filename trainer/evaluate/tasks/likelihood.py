"""Log-likelihoods of continuations after their contexts, over all ranks.

Requests with the same input share one row: the answers A, B, C and D of one question cost one forward.

Legend: B rows of a batch, T padded length, K positions whose logits are wanted, P scored tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.data.pack.collate import collate
from trainer.data.types import Pack
from trainer.errors import DataError
from trainer.evaluate.tasks.batches import TaskModel, make_batches, share

TOKENS_AT_ONCE = 512
"""Rows of float32 logits at once: 512 x 128k x 4 bytes is 0.26 GB."""

Scored = tuple[float, bool]
"""Log-likelihood in nats, and whether every token is the model's most likely one."""


@dataclass(slots=True)
class _Row:
    """One input of the model and the continuations that end one token after it, by number of the request."""

    tokens: tuple[int, ...]
    continuations: list[tuple[int, Sequence[int]]]


def log_likelihoods(
    model: TaskModel, requests: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[Scored]:
    """Score the (context, continuation) pairs in token ids. Collective: every rank, same requests; all get all.

    Inputs longer than the model's context lose tokens on the left.

    Raises:
        DataError: A context or continuation without tokens, or a continuation that does not fit.
    """
    rows = _rows(requests, model.max_length)
    found: list[tuple[int, float, bool]] = []
    with model.policy.evaluating():
        batches = make_batches([len(row.tokens) for row in rows], model.batch_tokens)
        for batch, is_counted in share(batches, model.policy.mesh.data):
            scored = _score(model, [rows[index] for index in batch])
            found += scored if is_counted else []
            model.heed()
    answers: list[Scored] = [(0.0, False)] * len(requests)
    for number, nats, is_greedy in (item for part in model.policy.mesh.gather_data(found) for item in part):
        answers[number] = (nats, is_greedy)
    return answers


def _rows(requests: Sequence[tuple[Sequence[int], Sequence[int]]], max_length: int) -> list[_Row]:
    rows: dict[tuple[int, ...], _Row] = {}
    for number, (context, continuation) in enumerate(requests):
        if not context or not 0 < len(continuation) <= max_length:
            raise DataError(
                f"A request of a benchmark task must have a context and 1 to {max_length} tokens after it, but one "
                f"has {len(context)} and {len(continuation)} tokens instead. Mend the task, or raise "
                "evaluate.tasks.max_length."
            )
        # The last token is predicted, not read.
        tokens = tuple([*context, *continuation][-(max_length + 1) : -1])
        rows.setdefault(tokens, _Row(tokens, [])).continuations.append((number, continuation))
    return list(rows.values())


def _score(model: TaskModel, rows: Sequence[_Row]) -> list[tuple[int, float, bool]]:
    """Return (request, log-likelihood, greedy) of every continuation of a batch."""
    width = len(rows[0].tokens)  # the longest comes first
    packs = [
        Pack(np.array(row.tokens), np.zeros(len(row.tokens), dtype=bool), [len(row.tokens)]) for row in rows
    ]
    micro = collate(packs, [0] * len(packs), width, model.pad_id, is_one_call=True)
    keep: list[int] = []
    where_P: list[int] = []
    targets_P: list[int] = []
    for number, row in enumerate(rows):
        longest = max(len(continuation) for _, continuation in row.continuations)
        end = number * width + len(row.tokens)
        keep += range(end - longest, end)
        for _, continuation in row.continuations:
            where_P += range(len(keep) - len(continuation), len(keep))
            targets_P += continuation
    logits_KV = model.policy.logits(micro, torch.tensor(keep, device=model.policy.device))
    nats_P, is_top_P = _log_probs(logits_KV, torch.tensor(where_P), torch.tensor(targets_P))
    found, start = [], 0
    for row in rows:
        for request, continuation in row.continuations:
            part = slice(start, start + len(continuation))
            found.append((request, float(nats_P[part].sum()), bool(is_top_P[part].all())))
            start = part.stop
    return found


def _log_probs(logits_KV: Tensor, where_P: Tensor, targets_P: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each scored token [P] float64, and whether none is more likely [P]."""
    log_probs, is_top = [], []
    for where, targets in zip(
        torch.split(where_P.to(logits_KV.device), TOKENS_AT_ONCE),
        torch.split(targets_P.to(logits_KV.device), TOKENS_AT_ONCE),
        strict=True,
    ):
        rows = torch.log_softmax(logits_KV[where].float(), dim=-1)
        log_probs.append(rows.gather(1, targets[:, None])[:, 0].double().cpu())
        is_top.append((rows.argmax(dim=-1) == targets).cpu())
    return torch.cat(log_probs), torch.cat(is_top)
