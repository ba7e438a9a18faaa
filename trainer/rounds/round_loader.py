"""The batches of steps that learn from a round: packs of the plan, with its answers in the place of the data's."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from trainer.data.pack.made import MadePiece, MadeSplit, pieces_of
from trainer.data.pack.refs import PackRef
from trainer.data.store.store import SplitStore
from trainer.mix.loader import PlannedStep, StepBatch, StepReader, planned_step, step_digest
from trainer.mix.plan import DataPlan
from trainer.rounds.asked_pieces import PiecePlace, answer_begins, with_answer
from trainer.sample.keyed import KeyedAnswer


class RoundLoader:
    """Training batches by step, of the round that was put in. Implements StepLoader.

    A step has as many documents as the plan draws for it, and as many packs as they take with their new answers.
    """

    def __init__(self, reader: StepReader, plan: DataPlan, sources: Collection[int]) -> None:
        """Take what reads packs, the plan, and the numbers of the sources whose documents are answered anew."""
        self.names = reader.names
        self._reader, self._plan, self._sources = reader, plan, frozenset(sources)
        self._planned: dict[int, PlannedStep] = {}
        self._answers: Mapping[PiecePlace, KeyedAnswer] = {}

    def refs(self, steps: range) -> list[PackRef]:
        """Return the packs that the plan draws in steps, over all ranks, in order."""
        for step in steps:
            if step not in self._planned:
                self._planned[step] = planned_step(self._plan, step)
        return [ref for step in steps for ref in self._planned[step].refs]

    def use(self, answers: Mapping[PiecePlace, KeyedAnswer]) -> None:
        """Take the answers of a round."""
        self._answers = answers

    def take(self, step: int) -> StepBatch:
        """Return the batch of a step.

        Its digest is that of the packs that the plan draws, as `verify` works it out; answers have one of their own.
        """
        self.refs(range(step, step + 1))
        planned = self._planned.pop(step)
        made, refs = self._made(planned.refs)
        batch = self._reader.read(dataclasses.replace(planned, refs=refs), made)
        return dataclasses.replace(batch, digest=step_digest(planned.refs, self._reader.stores))

    def _made(self, refs: list[PackRef]) -> tuple[list[SplitStore], list[PackRef]]:
        """Return splits with new answers in the place of those that are answered, and the packs of a step."""
        stores = list(self._reader.stores)
        found: list[PackRef] = []
        for source in sorted(self._sources):
            pieces = [
                self._answered(PiecePlace(*ref, number), piece)
                for ref in refs
                if ref.source == source
                for number, piece in enumerate(pieces_of(self._reader.stores[source].pack(ref.pack)))
            ]
            if pieces:
                made = MadeSplit(self._reader.stores[source], pieces)
                found += [PackRef(source, pack, 0) for pack in range(made.num_packs)]
                stores[source] = made
        return stores, [*found, *(ref for ref in refs if ref.source not in self._sources)]

    def _answered(self, place: PiecePlace, piece: MadePiece) -> MadePiece:
        answer = self._answers.get(place)
        begin = answer_begins(piece.supervised)
        if answer is None or begin is None:
            return piece
        return with_answer(piece.tokens[:begin].tolist(), answer.tokens)

    def forget(self) -> None:
        """Drop what was planned ahead: the plan is about to go elsewhere."""
        self._planned.clear()

    def close(self) -> None:
        """Have nothing to let go of."""
