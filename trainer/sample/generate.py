"""Samples batch after batch until enough is kept. Which rank samples a batch decides nothing.

Batches are numbered over all ranks. A round gives every rank the next batch that nobody has; outcomes go to
everybody, and batches count in the order of their numbers, so the same ones are kept however many ranks there
are and however often the work was stopped.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any, Protocol

from trainer.config.generate import GenerateConfig
from trainer.dist.mesh import Mesh
from trainer.errors import DataError
from trainer.sample.filters import DUPLICATE, find_fault, fingerprint, without_cut_character
from trainer.sample.prompts import Draft, PromptPlan
from trainer.sample.real_prompts import GivenPrompts
from trainer.sample.sampler import Sampler
from trainer.sample.samples import Batch, DraftOutcome, WorkFolder

TRIAL_SAMPLES = 256
MIN_KEPT_FRAC = 0.02


@dataclass(slots=True)
class Tally:
    """What the first `num_batches` batches gave."""

    num_batches: int = 0
    num_samples: int = 0
    num_sampled_tokens: int = 0
    num_kept: int = 0
    num_kept_tokens: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    seconds_s: float = 0.0
    """Sampling time summed over ranks."""
    _seen: set[str] = field(default_factory=set)

    def add(self, batch: Batch) -> None:
        """Count the next batch."""
        assert batch.number == self.num_batches, "batches count in their order"
        self.num_batches += 1
        self.num_samples += len(batch.outcomes)
        self.num_sampled_tokens += batch.num_sampled
        self.seconds_s += batch.seconds_s
        for outcome in batch.outcomes:
            fault = outcome.fault
            if fault is None and outcome.fingerprint in self._seen:
                fault = DUPLICATE
            if fault is not None:
                self.dropped[fault] += 1
                continue
            self._seen.add(outcome.fingerprint)
            self.num_kept += 1
            self.num_kept_tokens += outcome.num_tokens

    def check_yield(self) -> None:
        """Raise when nearly everything is dropped: it would go on for ever.

        Raises:
            DataError: Less than 2 % of at least 256 samples were kept.
        """
        if self.num_samples < TRIAL_SAMPLES or self.num_kept >= MIN_KEPT_FRAC * self.num_samples:
            return
        reasons = ", ".join(f"{reason}: {number}" for reason, number in self.dropped.most_common())
        raise DataError(
            f"`replay.generate` must keep some of its samples, but kept {self.num_kept} of {self.num_samples} "
            f"({reasons}). Raise max_new_tokens, loosen the filter that is named, or check that the model is the "
            "one you mean."
        )

    def to_plain(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return {
            "samples": self.num_samples,
            "sampled_tokens": self.num_sampled_tokens,
            "kept": self.num_kept,
            "kept_tokens": self.num_kept_tokens,
            "dropped": dict(sorted(self.dropped.items())),
            "batches": self.num_batches,
            "sampling_s": round(self.seconds_s, 3),
        }


class Decoder(Protocol):
    """What this room asks of a tokenizer once tokens are there."""

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids, special tokens included."""


@dataclass(frozen=True, slots=True)
class Judge:
    """Turns drafts into rows and finds their faults."""

    plan: PromptPlan
    options: GenerateConfig
    decoder: Decoder
    special_ids: Set[int]
    given: GivenPrompts | None = None
    """What is asked; None: the model asks itself, or writes texts."""

    def outcome(self, draft: Draft) -> tuple[DraftOutcome, dict[str, Any]]:
        """Return what became of a draft and the row it makes."""
        texts = [self.decoder.decode(turn) for turn in draft.turns]
        if self.plan.is_chat:
            texts = [text.strip() for text in texts]
        elif not draft.has_ended:
            texts = [without_cut_character(text) for text in texts]
        fault = find_fault(
            draft.turns, texts, self.plan.is_chat, draft.has_ended, self.special_ids, self.options
        )
        row: dict[str, Any] = {"text": texts[0]}
        if self.given is not None and draft.place is not None:
            asked = self.given.turns[draft.place]
            answer = {"role": "assistant", "content": self.plan.opening + texts[0]}
            row = {"messages": [*asked, answer]}
            texts = [*(str(turn.get("content")) for turn in asked), *texts]
        elif self.plan.is_chat:
            said = [self.plan.opening + text for text in texts[1:]]
            roles = zip(("user", "assistant"), texts[:1] + said, strict=False)
            row = {"messages": [{"role": role, "content": text} for role, text in roles]}
        return DraftOutcome(sum(map(len, draft.turns)), fingerprint(texts), fault), row


def sample_until_enough(
    sampler: Sampler,
    judge: Judge,
    work: WorkFolder,
    mesh: Mesh,
    should_stop: Callable[[], bool],
    show: Callable[[Tally], None],
) -> Tally | None:
    """Sample until enough tokens are kept; None when a rank was told to stop. Collective: every rank.

    Raises:
        DataError: Nearly all samples are dropped.
    """
    goal = judge.options.num_tokens
    known: dict[int, Batch] = mesh.from_first(
        lambda: {batch.number: batch.without_rows() for batch in work.batches()}
    )
    tally = Tally()
    with work.open_part(mesh.rank) as part:
        while True:
            while tally.num_kept_tokens < goal and tally.num_batches in known:
                tally.add(known.pop(tally.num_batches))
                tally.check_yield()
            show(tally)
            if tally.num_kept_tokens >= goal:
                return tally
            missing = (number for number in count(tally.num_batches) if number not in known)
            number = next(islice(missing, mesh.rank, None))
            batch = sample_batch(sampler, judge, number, should_stop)
            if batch is not None:
                part.write(batch.to_line())
                part.flush()
                os.fsync(part.fileno())
            found = mesh.gather(None if batch is None else batch.without_rows())
            if None in found:
                return None
            known |= {one.number: one for one in found}


def sample_batch(
    sampler: Sampler, judge: Judge, number: int, should_stop: Callable[[], bool]
) -> Batch | None:
    """Sample and judge one batch on this rank; None when it was told to stop."""
    started = time.monotonic()
    drafts = sampler.sample(number, should_stop)
    if drafts is None:
        return None
    judged = [judge.outcome(draft) for draft in drafts]
    return Batch(
        number=number,
        num_sampled=sum(draft.num_sampled for draft in drafts),
        seconds_s=round(time.monotonic() - started, 3),
        outcomes=[outcome for outcome, _ in judged],
        rows=[row for _, row in judged],
    )
