"""The held-out answers with labels of a run: both labels, in the loss that is minimised, logged and told."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.config.metric import ANSWER_LOSS, POINT
from trainer.config.objective import ObjectiveKind
from trainer.config.preference import PreferenceConfig, PreferenceLoss
from trainer.data.pack.mismatched import MismatchedSplit
from trainer.data.pack.refs import PackRef
from trainer.data.store.store import SplitStore
from trainer.data.types import Float64s, Unit
from trainer.engine.policy import Policy
from trainer.evaluate.held_out import HeldOut, HeldOutLosses, held_out_losses
from trainer.metrics.tracker import by_source
from trainer.objective.preference.answer_losses import reference_point
from trainer.objective.preference.judged_answers import JudgedAnswers, judge_answers
from trainer.run.references import RunReferences, strange_splits
from trainer.run.session import Session
from trainer.teacher.answer_sums import AnswerSums

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HeldOutAnswers:
    """What judges the held-out answers of a run."""

    policy: Policy
    options: PreferenceConfig
    held_out: HeldOut
    """Of all sources."""
    reference: AnswerSums
    """Of the held-out answers."""
    strange_stores: Sequence[SplitStore]
    """Of all sources, with answers behind the prompts of others where they have labels."""
    strange_reference: AnswerSums | None
    """Of those; None where the loss measures from no point."""

    @property
    def alone(self) -> HeldOut:
        """Return the held-out packs of the sources of answers."""
        return self._of(self.held_out.stores)

    def judge(self, found: HeldOutLosses) -> dict[str, JudgedAnswers]:
        """Judge the answers of every source that has some held out. Collective: every rank."""
        if not found.labelled:
            return {}
        point = self._point()
        judged = {}
        for name, losses in found.labelled.items():
            ratios_A = torch.from_numpy(-losses.nll_P - self._sums(self.reference, name))
            is_desirable_A = torch.from_numpy(losses.is_desirable_P)
            judged[name] = judge_answers(ratios_A, is_desirable_A, point, self.options)
        return judged

    def _point(self) -> Tensor:
        """Return the point of KTO, of all held-out answers as that of a step is of all of the step; else 0."""
        ratio_sum, count = torch.zeros((), dtype=torch.float64), 0
        if self.strange_reference is not None:
            found = held_out_losses(self.policy, self._of(self.strange_stores))
            for name, losses in found.labelled.items():
                ratios_A = -losses.nll_P - self._sums(self.strange_reference, name)
                is_strange_A = self._is_strange(name)
                ratio_sum += float(ratios_A[is_strange_A].sum())
                count += int(is_strange_A.sum())
        return reference_point(ratio_sum, max(count, 1))

    def _is_strange(self, name: str) -> np.ndarray:
        store = self.strange_stores[list(self.held_out.names).index(name)]
        assert isinstance(store, MismatchedSplit)
        return np.concatenate([store.is_strange(ref.pack) for ref in self._refs(name)])

    def _sums(self, reference: AnswerSums, name: str) -> Float64s:
        return reference.of(self._refs(name))

    def _refs(self, name: str) -> list[PackRef]:
        source = list(self.held_out.names).index(name)
        num_packs = min(self.held_out.stores[source].num_packs, self.held_out.max_packs)
        return [PackRef(source, pack, 0) for pack in range(num_packs)]

    def _of(self, stores: Sequence[SplitStore]) -> HeldOut:
        kept = [number for number, store in enumerate(stores) if store.unit is Unit.answer]
        return dataclasses.replace(
            self.held_out,
            names=[self.held_out.names[number] for number in kept],
            stores=[stores[number] for number in kept],
        )

    def logged(self, judged: Mapping[str, JudgedAnswers]) -> dict[str, float]:
        """Return what is logged of them, by key."""
        record: dict[str, float | None] = {}
        for name, found in judged.items():
            record |= {
                by_source(ANSWER_LOSS, name): found.loss,
                by_source("eval_reward_desirable", name): found.reward_desirable,
                by_source("eval_reward_undesirable", name): found.reward_undesirable,
                POINT: found.point,
            }
        return {key: value for key, value in record.items() if value is not None}


def tell_answers(judged: Mapping[str, JudgedAnswers]) -> None:
    """Say in a line a source what the loss is, and how rewards differ by label."""
    for name, found in judged.items():
        _LOG.info("Held-out answers of %s: %s", name, told_answers(found))


def told_answers(found: JudgedAnswers) -> str:
    """Return in words the loss of answers, the point that it measures from, and how rewards differ by label."""
    rewards = [
        f"{reward:+.4g} in the mean of {count} {side}"
        for reward, count, side in (
            (found.reward_desirable, found.num_desirable, "desirable"),
            (found.reward_undesirable, found.num_undesirable, "undesirable"),
        )
        if reward is not None
    ]
    point = "" if found.point is None else f", point of reference {found.point:.4g} nats"
    return f"loss {found.loss:.4f}{point}; rewards {', '.join(rewards)}."


def held_out_answers(session: Session, references: RunReferences | None) -> HeldOutAnswers | None:
    """Return what judges the held-out answers of a run; None where its loss is not of answers with labels."""
    options = session.config.objective
    if options.kind is not ObjectiveKind.preference or options.preference.is_paired:
        return None
    assert references is not None, "losses of answers with labels have a reference"
    held_out = session.held_out()
    is_kto = options.preference.loss is PreferenceLoss.kto
    return HeldOutAnswers(
        session.policy,
        options.preference,
        held_out,
        references.validation,
        strange_splits(held_out.stores),
        references.strange_validation if is_kto else None,
    )
