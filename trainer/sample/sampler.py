"""Samples the model with plain PyTorch: one forward pass a token, a KV cache, no padding.

Legend: B samples of a batch that still grow, T tokens, V vocabulary.

The model's generation_config is not read: instruct models set temperature 0.6 or top_p 0.9 in it, and their
samples would be narrower than what the model knows. Logits are divided by the temperature in float32,
and with temperature 1 and top_p 1 a token is drawn from exactly the model's distribution; there is no top_k.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from typing import Any, Protocol

import torch

from trainer.config.generate import GenerateConfig
from trainer.model.body import body_of, cache_argument, keeps_state_alone
from trainer.model.cache import empty_cache
from trainer.model.widths import attention_widths
from trainer.sample.prompts import Draft, PromptPlan
from trainer.sample.real_prompts import GivenPrompts

CPU_BATCH = 16
MAX_BATCH = 256


class Sampler(Protocol):
    """Makes the samples of a batch from its number."""

    def sample(self, number: int, should_stop: Callable[[], bool]) -> list[Draft] | None:
        """Return the batch, or None when it was told to stop on the way."""


def drafts_of(
    plan: PromptPlan, options: GenerateConfig, batch_size: int, number: int, given: GivenPrompts | None
) -> list[Draft]:
    """Return the drafts of batch `number`, with their prompts where those are given."""
    if given is None:
        return [Draft(plan, options.max_new_tokens) for _ in range(batch_size)]
    drafts = []
    for row in range(batch_size):
        place = given.place(number * batch_size + row)
        draft = Draft(plan, options.max_new_tokens, place)
        draft.ask(given.rest[place])
        drafts.append(draft)
    return drafts


class TransformersSampler:
    """Samples with the model that transformers loaded, on this rank's device."""

    def __init__(
        self,
        model: Any,
        plan: PromptPlan,
        options: GenerateConfig,
        batch_size: int,
        device: torch.device,
        given: GivenPrompts | None = None,
    ) -> None:
        """Take the model.

        Raises:
            ModelError: It keeps what it has read in a way that is not known.
        """
        self._model = model.eval()
        self._cache_name = cache_argument(model)
        self._takes_places = not keeps_state_alone(body_of(model))
        self._plan = plan
        self._options = options
        self._batch_size = batch_size
        self._device = device
        self._given = given

    @torch.inference_mode()
    def sample(self, number: int, should_stop: Callable[[], bool]) -> list[Draft] | None:
        """Sample batch `number`; the result depends on it, the seed and the batch size alone."""
        options = self._options
        generator = torch.Generator(self._device).manual_seed(batch_seed(options.seed, number))
        drafts = drafts_of(self._plan, options, self._batch_size, number, self._given)
        # The header is the same in every row: it is read once and what is kept of it repeated. By choosing rows, which
        # states of recurrent layers can and no method else of theirs.
        cache = empty_cache(self._model.config)
        logits_BV = self._read(self._tensor([self._plan.header]), cache, 0).repeat_interleave(
            len(drafts), dim=0
        )
        cache.reorder_cache(self._tensor([0] * len(drafts)))
        live = drafts
        for place in itertools.count(len(self._plan.header)):
            if should_stop():
                return None
            tokens_B = draw(logits_BV, options.temperature, options.top_p, generator)
            follow = [draft.take(token) for draft, token in zip(live, tokens_B.tolist(), strict=True)]
            growing = [row for row, draft in enumerate(live) if not draft.is_done]
            if not growing:
                return drafts
            if 2 * len(growing) <= len(live):  # finished rows go when they are half: a copy of the cache
                cache.reorder_cache(self._tensor(growing))
                live = [live[row] for row in growing]
                follow = [follow[row] for row in growing]
            logits_BV = self._read(self._tensor([[token] for token in follow]), cache, place)
        raise AssertionError("every draft ends")

    def _read(self, tokens_BT: torch.Tensor, cache: Any, place: int) -> torch.Tensor:
        """Return the logits after the last token of each row; the cache is filled in place.

        Args:
            place: Of the first token in its row: a model whose first layer keeps no keys may count wrongly itself.
        """
        given = {self._cache_name: cache}
        if self._takes_places:
            places_T = torch.arange(place, place + tokens_BT.shape[1], device=self._device)
            given["position_ids"] = places_T.expand(len(tokens_BT), -1)
        output = self._model(tokens_BT, use_cache=True, **given)
        return torch.as_tensor(output.logits[:, -1])

    def _tensor(self, values: list[Any]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)


def draw(
    logits_BV: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator
) -> torch.Tensor:
    """Draw a token for every row.

    Shapes:
        logits: [B, V], any float type; result: [B].
    """
    probs_BV = torch.softmax(logits_BV.float() / temperature, dim=-1)
    if top_p < 1:
        sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True)
        before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV
        sorted_BV = sorted_BV.masked_fill(before_BV >= top_p, 0.0)  # the first one always stays
        probs_BV = torch.zeros_like(probs_BV).scatter(-1, order_BV, sorted_BV)
    return torch.multinomial(probs_BV, 1, generator=generator)[:, 0]


def batch_seed(seed: int, number: int) -> int:
    """Return the seed of a batch: a hash, so that neighbours have nothing in common."""
    digest = hashlib.sha256(f"{seed}:{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def choose_batch_size(
    hf_config: Any, num_tokens: int, gpu_bytes: int | None, num_parameters: int, element_bytes: int = 2
) -> int:
    """Return a batch that fits beside the weights: a power of two up to 256; 16 without a GPU, or without keys.

    What a model of states alone keeps of a row has no name that all configurations share.

    Args:
        num_tokens: Longest sequence, prompt included.
        gpu_bytes: All of the GPU's memory, so that two GPUs of a kind choose the same; None without one.
    """
    if gpu_bytes is None or not cache_bytes(hf_config):
        return CPU_BATCH
    # Growing the cache by a token holds one layer twice; count the cache twice for the allocator's gaps.
    cache = 2 * cache_bytes(hf_config, element_bytes) * num_tokens
    logits = 16 * int(hf_config.vocab_size)  # float32: logits, probabilities, noise, and the model's own
    room = 0.9 * gpu_bytes - element_bytes * num_parameters
    fits = max(int(room // (cache + logits)), 1)
    return min(1 << (fits.bit_length() - 1), MAX_BATCH)


def cache_bytes(hf_config: Any, element_bytes: int = 2) -> int:
    """Return the bytes of one token's keys and values, in bf16 unless said otherwise; 0 without attention."""
    if not getattr(hf_config, "num_attention_heads", None):
        return 0
    widths = attention_widths(hf_config) or (hf_config.hidden_size, hf_config.hidden_size)
    return int(2 * element_bytes * int(hf_config.num_hidden_layers) * widths[1])
