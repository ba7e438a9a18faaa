"""Answers sampled by the model that trains, keyed by prompt: no rank, order of ranks or other prompt decides a token.

Every token of an answer is drawn with a number of its own, made from the seed, the prompt's key and the token's place,
by inverting the distribution; no generator of random numbers of the run moves. Batches are laid out over all prompts
before ranks share them, so one and the same batch is computed whatever the ranks. Batches are padded on the left.

Legend: B rows of a batch, T padded length of the prompts, V vocabulary, K blocks of it of C tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.data.types import Float64s
from trainer.engine.policy import Policy
from trainer.model.cache import empty_cache
from trainer.model.head.ask import Logits

BLOCK = 256
"""Tokens whose mass is added up first: sums of sums by matrix, because cumsum has no fixed order on a GPU."""


class KeyedPrompt(NamedTuple):
    """Token ids up to where an answer begins."""

    key: str
    """With the seed it decides what is drawn."""
    tokens: list[int]
    max_new_tokens: int


class KeyedAnswer(NamedTuple):
    """Token ids of an answer, its end among them where it has one."""

    tokens: list[int]
    has_ended: bool


@dataclass(slots=True)
class _Row:
    prompt: KeyedPrompt
    numbers: Float64s
    tokens: list[int] = field(default_factory=list)
    has_ended: bool = False

    @property
    def is_done(self) -> bool:
        return self.has_ended or len(self.tokens) >= self.prompt.max_new_tokens

    def take(self, token: int, end_ids: frozenset[int]) -> None:
        if not self.is_done:
            self.tokens.append(token)
            self.has_ended = token in end_ids

    @property
    def number(self) -> float:
        """Return what draws the next token."""
        return float(self.numbers[min(len(self.tokens), len(self.numbers) - 1)])


@dataclass(frozen=True, slots=True)
class KeyedSampler:
    """Has the model that trains answer prompts, over all ranks."""

    policy: Policy
    hf_config: Any
    pad_id: int
    end_ids: frozenset[int]
    """Tokens that end an answer."""
    max_length: int
    """Longest prompt with its answer, in tokens."""
    temperature: float
    batch_size: int
    """Prompts that a rank answers at once."""
    seed: int
    num_ids: int | None = None
    """Only the first so many tokens may be sampled; None: all."""
    never: tuple[int, ...] = ()
    """Tokens that are not sampled."""

    def sample(
        self, prompts: Sequence[KeyedPrompt], heed: Callable[[], None] = lambda: None
    ) -> list[KeyedAnswer]:
        """Return an answer to every prompt. Collective: every rank, same prompts; all get all.

        Args:
            heed: Called after every batch, by all ranks together; what it raises on all of them ends the work.
        """
        mesh = self.policy.mesh
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].tokens), i))
        batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        found: list[tuple[int, KeyedAnswer]] = []
        with self.policy.evaluating():
            for start in range(0, len(batches), mesh.data.size):
                mine = start + mesh.data.rank
                is_counted = mine < len(batches)
                batch = batches[mine] if is_counted else batches[-1][:1]
                if is_counted or self.policy.engine.has_collective_forward:
                    answers = self._answer([prompts[i] for i in batch])
                    found += zip(batch, answers, strict=True) if is_counted else []
                heed()
        everything = [item for part in mesh.gather_data(found) for item in part]
        return [answer for _, answer in sorted(everything, key=lambda item: item[0])]

    def _answer(self, prompts: Sequence[KeyedPrompt]) -> list[KeyedAnswer]:
        device = self.policy.device
        rows = [_Row(prompt, uniforms(self.seed, prompt.key, prompt.max_new_tokens)) for prompt in prompts]
        live = rows
        width = max(len(prompt.tokens) for prompt in prompts)
        padding = [width - len(prompt.tokens) for prompt in prompts]
        tokens_BT = torch.tensor(
            [[self.pad_id] * pad + prompt.tokens for pad, prompt in zip(padding, prompts, strict=True)],
            device=device,
        )
        padding_B1 = torch.tensor(padding, device=device)[:, None]
        column_T = torch.arange(width, device=device)
        mask_BT = (column_T >= padding_B1).long()
        positions_BT = (column_T - padding_B1).clamp(min=0)
        cache = empty_cache(self.hf_config)
        while True:
            num_rows, num_columns = tokens_BT.shape
            logits_BV = self.policy.answer_raw(
                Logits(torch.arange(1, num_rows + 1, device=device) * num_columns - 1),
                input_ids=tokens_BT,
                attention_mask=mask_BT,
                position_ids=positions_BT,
                past_key_values=cache,
            )
            numbers_B = torch.tensor([row.number for row in live], dtype=torch.float64, device=device)
            tokens_B = draw_at(self._open(logits_BV), self.temperature, numbers_B)
            for row, token in zip(live, tokens_B.tolist(), strict=True):
                row.take(token, self.end_ids)
            growing = [place for place, row in enumerate(live) if not row.is_done]
            if not self._goes_on(growing):
                return [KeyedAnswer(row.tokens, row.has_ended) for row in rows]
            tokens_BT, positions_BT = tokens_B[:, None], positions_BT[:, -1:] + 1
            mask_BT = torch.cat([mask_BT, torch.ones_like(tokens_BT)], dim=1)
            if growing and 2 * len(growing) <= len(live):  # a copy of the cache
                keep = torch.tensor(growing, device=device)
                cache.reorder_cache(keep)
                tokens_BT, positions_BT, mask_BT = tokens_BT[keep], positions_BT[keep], mask_BT[keep]
                live = [live[place] for place in growing]
            positions_BT = positions_BT.clamp(max=self.max_length - 1)  # of rows that go on for others

    def _goes_on(self, growing: Sequence[int]) -> bool:
        """Tell whether this rank takes another token: while any does where forward passes are collective."""
        if not self.policy.engine.has_collective_forward:
            return bool(growing)
        return self.policy.mesh.sum([float(bool(growing))])[0] > 0

    def _open(self, logits_BV: Tensor) -> Tensor:
        """Return the logits of what may be sampled."""
        logits_BV = logits_BV[:, : self.num_ids].float()
        if self.never:
            logits_BV[:, [token for token in self.never if token < logits_BV.shape[1]]] = float("-inf")
        return logits_BV


def uniforms(seed: int, key: str, num: int) -> Float64s:
    """Return numbers in [0, 1) that the seed and the key alone decide: Philox, keyed by their hash."""
    digest = hashlib.sha256(f"palimpsest-answer:{seed}:{key}".encode()).digest()
    generator = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    return np.random.Generator(generator).random(num)


def draw_at(logits_BV: Tensor, temperature: float, numbers_B: Tensor) -> Tensor:
    """Return the token of each row at which the distribution function passes a number in [0, 1), [B].

    In float64, so that what is drawn is the distribution to 1e-15, and changes with the last bits of a float32 logit
    only where a number is that near to an edge.
    """
    probs_BV = torch.softmax(logits_BV.double() / temperature, dim=-1)
    missing = -probs_BV.shape[1] % BLOCK
    blocks_BKC = torch.nn.functional.pad(probs_BV, (0, missing)).reshape(len(probs_BV), -1, BLOCK)
    mass_BK = blocks_BKC.sum(dim=-1)
    upto_BK = mass_BK @ _sums_to(mass_BK.shape[1], mass_BK)
    target_B1 = (numbers_B * upto_BK[:, -1])[:, None]
    block_B1 = (upto_BK <= target_B1).sum(dim=-1, keepdim=True).clamp(max=mass_BK.shape[1] - 1)
    before_B1 = (upto_BK - mass_BK).gather(1, block_B1)
    inside_BC = blocks_BKC.gather(1, block_B1[:, :, None].expand(-1, 1, BLOCK))[:, 0]
    upto_BC = inside_BC @ _sums_to(BLOCK, mass_BK) + before_B1
    place_B1 = (upto_BC <= target_B1).sum(dim=-1, keepdim=True).clamp(max=BLOCK - 1)
    token_B = (block_B1 * BLOCK + place_B1)[:, 0].clamp(max=probs_BV.shape[1] - 1)
    # At an edge rounding may lead to a token without mass.
    has_mass_B = probs_BV.gather(1, token_B[:, None])[:, 0] > 0
    return torch.where(has_mass_B, token_B, probs_BV.argmax(dim=-1))


def _sums_to(size: int, like: Tensor) -> Tensor:
    """Return the matrix [size, size] that adds up a row to each of its places."""
    return torch.ones((size, size), dtype=like.dtype, device=like.device).triu()
