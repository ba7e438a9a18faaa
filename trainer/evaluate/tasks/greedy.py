"""Greedy continuations of prompts, over all ranks: left-padded batches, a key-value cache, one token a step.

Every rank takes as many steps as the slowest one of its round, because a step is collective under ZeRO-3.

Legend: B rows of a batch, T padded length of the prompts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from trainer.errors import ConfigError
from trainer.evaluate.tasks.batches import TaskModel, make_batches, share
from trainer.model.cache import empty_cache
from trainer.model.head.ask import Logits

Decode = Callable[[list[int]], str]


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids to continue, and where to stop."""

    ids: list[int]
    max_new_tokens: int
    stops: tuple[str, ...]
    """Texts that end the answer; they are not part of it."""
    stop_ids: frozenset[int] = frozenset()
    """Special tokens that end it."""


@dataclass(slots=True)
class _Answer:
    prompt: Prompt
    ids: list[int] = field(default_factory=list)
    is_done: bool = False

    def take(self, token: int, end_ids: frozenset[int], decode: Decode) -> None:
        """Append a token unless the answer has ended, and find out whether it ends here."""
        if self.is_done:
            return
        if token in end_ids or token in self.prompt.stop_ids:
            self.is_done = True
            return
        self.ids.append(token)
        # A stop is at most as many tokens long as it has bytes; one more may hold its first byte.
        reach = max((len(stop.encode("utf-8")) for stop in self.prompt.stops), default=0) + 2
        tail = decode(self.ids[-reach:])
        self.is_done = len(self.ids) >= self.prompt.max_new_tokens or any(
            stop in tail for stop in self.prompt.stops
        )


def continue_greedily(model: TaskModel, prompts: Sequence[Prompt], decode: Decode) -> list[list[int]]:
    """Return the most likely next tokens of every prompt, end tokens left out; the last ones may spell a stop.

    Collective: every rank, same prompts; all get all. Prompts lose tokens on the left where they do not fit.

    Args:
        decode: Text of token ids in which stops are looked for: without special tokens, whose names may hold one.

    Raises:
        ConfigError: An answer alone would be longer than the model's context.
    """
    fitted = [_fitted(prompt, model.max_length) for prompt in prompts]
    found: list[tuple[int, list[int]]] = []
    with model.policy.evaluating():
        lengths = [len(prompt.ids) + prompt.max_new_tokens for prompt in fitted]
        batches = make_batches(lengths, model.batch_tokens)
        for batch, is_counted in share(batches, model.policy.mesh.data):
            answers = _continue_batch(model, [fitted[index] for index in batch], decode)
            found += zip(batch, answers, strict=True) if is_counted else []
            model.heed()
    everything = [item for part in model.policy.mesh.gather_data(found) for item in part]
    return [ids for _, ids in sorted(everything, key=lambda item: item[0])]


def _fitted(prompt: Prompt, max_length: int) -> Prompt:
    room = max_length - prompt.max_new_tokens
    if room < 1:
        raise ConfigError(
            f"`evaluate.tasks.max_length` must be more than the {prompt.max_new_tokens} tokens that are generated, "
            f"but is {max_length} instead. Raise it, or lower max_gen_toks in the task's generation_kwargs, or "
            "evaluate.during.samples.max_new_tokens."
        )
    return replace(prompt, ids=prompt.ids[-room:])


def _continue_batch(model: TaskModel, prompts: Sequence[Prompt], decode: Decode) -> list[list[int]]:
    device = model.policy.device
    answers = [_Answer(prompt) for prompt in prompts]
    width = max(len(prompt.ids) for prompt in prompts)
    padding = [width - len(prompt.ids) for prompt in prompts]
    tokens_BT = torch.tensor(
        [[model.pad_id] * pad + prompt.ids for pad, prompt in zip(padding, prompts, strict=True)],
        device=device,
    )
    column_T, padding_B1 = torch.arange(width, device=device), torch.tensor(padding, device=device)[:, None]
    mask_BT = (column_T >= padding_B1).long()
    positions_BT = (column_T - padding_B1).clamp(min=0)
    last_B = torch.arange(1, len(prompts) + 1, device=device) * width - 1
    cache = empty_cache(model.hf_config)
    while True:
        logits_BV = model.policy.answer_raw(
            Logits(last_B),
            input_ids=tokens_BT,
            attention_mask=mask_BT,
            position_ids=positions_BT,
            past_key_values=cache,
        )
        tokens_B = logits_BV.argmax(dim=-1)
        for answer, token in zip(answers, tokens_B.tolist(), strict=True):
            answer.take(token, model.end_ids, decode)
        if not model.policy.mesh.sum([float(not all(answer.is_done for answer in answers))])[0]:
            return [answer.ids for answer in answers]
        tokens_BT = tokens_B[:, None]
        mask_BT = torch.cat([mask_BT, torch.ones_like(tokens_BT)], dim=1)
        # Rows that have ended go on for the others, perhaps beyond the context.
        positions_BT = (positions_BT[:, -1:] + 1).clamp(max=model.max_length - 1)
        last_B = torch.arange(len(prompts), device=device)
