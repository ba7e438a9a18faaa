"""A sampler of numbered words for tests of rounds and stores."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.config.generate import GenerateConfig
from trainer.sample.generate import Judge
from trainer.sample.prompts import Draft, PromptPlan
from trainer.sample.sampler import batch_seed
from trainer.sample.samples import WorkFolder

PLAN = PromptPlan(is_chat=False, header=[0], bridge=[], stops=[1])
STARTED = {"engine": "words", "batch_size": 4, "prompts": PLAN.to_plain(), "samples_key": "a"}


class Words:
    """Decodes a token as a word."""

    def decode(self, ids: list[int]) -> str:
        """Return a word for each token."""
        return " ".join(f"word{token}" for token in ids)


class WordSampler:
    """Four samples a batch, sure to hold some duplicates and some that are too short."""

    def __init__(self, pause_s: float = 0.0) -> None:
        self.pause_s = pause_s
        self.sampled: list[int] = []

    def sample(self, number: int, should_stop: Callable[[], bool]) -> list[Draft] | None:
        """Return the batch of this number."""
        time.sleep(self.pause_s)
        if should_stop():
            return None
        self.sampled.append(number)
        source = random.Random(batch_seed(7, number))
        drafts = []
        for _ in range(4):
            draft = Draft(PLAN, 20)
            length = source.choice([3, 12, 20])
            first = source.randrange(10, 40)
            for token in range(first, first + length):
                draft.take(token)
            draft.take(1)
            drafts.append(draft)
        return drafts


def judge_of(num_tokens: int) -> Judge:
    """Return the judge of word samples."""
    return Judge(PLAN, GenerateConfig(num_tokens=num_tokens), Words(), frozenset({0, 1}))


def generate_words(
    mesh: Any, target: Path, num_tokens: int, sampler: WordSampler, should_stop: Any = lambda: False
) -> dict[str, Any] | None:
    """Sample and publish a store of words; return its meta, or None when stopped."""
    from trainer.sample.generate import sample_until_enough

    work = WorkFolder(target)
    mesh.from_first(lambda: work.begin(STARTED))
    tally = sample_until_enough(sampler, judge_of(num_tokens), work, mesh, should_stop, lambda tally: None)
    if tally is None:
        return None
    counts = tally.to_plain()
    counts.pop("sampling_s")
    return dict(mesh.from_first(lambda: work.publish(tally.num_batches, {"key": "k", "counts": counts})))
