"""A round of a run: sample under the model as it is, keep what was sampled, and learn from it for some steps.

    prompts of the steps' packs -> answers of the model -> rounds/NNNNNN.jsonl -> packs -> that many steps

Synchronous: nothing trains meanwhile. What a round holds is a function of plan, seed and the weights at its first step.
An objective that rates answers as a whole does so between the second and the third.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.checkpoint.state import TrainState
from trainer.data.store.store import SplitStore
from trainer.dist.mesh import Mesh
from trainer.mix.loader import chain_digest
from trainer.rounds.asked_pieces import RoundPrompts, find_prompts
from trainer.rounds.kept_round import RoundRecord, read_round, write_round
from trainer.rounds.round_loader import RoundLoader
from trainer.sample.keyed import KeyedPrompt, KeyedSampler


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """How rounds are laid out over a run."""

    num_steps: int
    """Of the run."""
    steps_per_round: int
    share: float
    """Of the prompts that the model answers."""
    max_new_tokens: int
    seed: int

    def steps(self, number: int) -> range:
        """Return the zero-based steps of a round; the last may have fewer."""
        first = number * self.steps_per_round
        return range(first, min(first + self.steps_per_round, self.num_steps))


@dataclass(frozen=True, slots=True)
class RoundNote:
    """What a checkpoint keeps of its newest round."""

    number: int
    digest: str
    """Of its answers."""
    chain: str
    """Of those of all rounds so far."""


@dataclass(frozen=True, slots=True)
class MadeRound:
    """What a round came to."""

    number: int
    digest: str
    num_answers: int
    num_tokens: int
    num_ended: int
    num_given: int
    """Prompts whose answer is that of the data."""
    num_without: int
    """Documents without a prompt, which are learnt as they are."""

    def to_plain(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return dataclasses.asdict(self)


class Rounds:
    """The rounds of a run."""

    def __init__(
        self,
        mesh: Mesh,
        run_dir: Path,
        plan: RoundPlan,
        sampler: KeyedSampler,
        loader: RoundLoader,
        stores: list[SplitStore],
        sources: Collection[int],
    ) -> None:
        """Take how they are laid out, who answers, and who reads what is learnt.

        Args:
            stores: Training splits, in the order of the loader's names.
            sources: Numbers of those whose prompts are answered.
        """
        self._mesh, self._run_dir, self._plan = mesh, run_dir, plan
        self._sampler, self.loader = sampler, loader
        self._stores, self._sources = stores, frozenset(sources)

    def left(self, step: int) -> int:
        """Return how many rounds begin at a step or behind it."""
        size = self._plan.steps_per_round
        return -(-self._plan.num_steps // size) - -(-step // size)

    def is_due(self, state: TrainState) -> bool:
        """Tell whether the next step belongs to a round that was not sampled."""
        number = state.step // self._plan.steps_per_round
        return state.step < self._plan.num_steps and state.round.get("number") != number

    def restore(self, state: TrainState) -> None:
        """Go on where a checkpoint stands: in the middle of a round with the answers that are kept of it.

        Collective: every rank.

        Raises:
            CheckpointError: They are not there.
        """
        self.loader.forget()
        if not state.round or self.is_due(state) or state.step >= self._plan.num_steps:
            return
        note, names = RoundNote(**state.round), self.loader.names
        record = self._mesh.from_first(lambda: read_round(self._run_dir, note.number, names, note.digest))
        self.loader.use(record.answers)

    def make(self, state: TrainState, heed: Callable[[], None]) -> MadeRound:
        """Sample the round that is due, keep it, and note it in the state. Collective: every rank.

        Raises:
            GivenUp: A rank was asked to stop meanwhile; nothing is kept.
            OSError: It cannot be written.
        """
        number = state.step // self._plan.steps_per_round
        asked = self._asked(state.step, number)
        names, seq_len = self.loader.names, self._stores[0].seq_len
        prompts = [
            KeyedPrompt(
                one.place.key(names[one.place.source]),
                one.prompt,
                min(self._plan.max_new_tokens, seq_len - len(one.prompt)),
            )
            for one in asked.prompts
        ]
        answers = self._sampler.sample(prompts, heed)
        by_place = {one.place: answer for one, answer in zip(asked.prompts, answers, strict=True)}
        record = RoundRecord(number, state.step, by_place)
        digest = str(self._mesh.from_first(lambda: write_round(self._run_dir, record, names)))
        self.loader.use(by_place)
        chain = chain_digest(str(state.round.get("chain", "")), digest)
        state.round = dataclasses.asdict(RoundNote(number, digest, chain))
        return MadeRound(
            number,
            digest,
            len(by_place),
            record.num_tokens,
            record.num_ended,
            asked.num_given,
            asked.num_without,
        )

    def _asked(self, step: int, number: int) -> RoundPrompts:
        """Return the prompts of a round's steps that are still to come."""
        steps = self._plan.steps(number)
        refs = self.loader.refs(range(step, steps.stop))
        plan = self._plan
        return find_prompts(refs, self._stores, self.loader.names, self._sources, plan.share, plan.seed)
