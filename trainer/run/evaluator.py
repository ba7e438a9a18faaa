"""Held-out losses during a run, and what training changed at its end.

Collective everywhere: every rank, same order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeVar

from trainer.checkpoint.state import TrainState
from trainer.config.data import Role
from trainer.config.metric import FORGETTING, KL_MEAN
from trainer.config.replay import RatioController, ReplayConfig
from trainer.data.store.store import data_digest
from trainer.engine.policy import Policy
from trainer.errors import DataError
from trainer.evaluate.forgetting import ForgettingMeasurement, Subject, Texts, prompts_for_kl
from trainer.evaluate.held_out import HeldOut, HeldOutLosses, PieceLosses, held_out_losses
from trainer.evaluate.record import BASE_FILE as BASE_EVALUATION
from trainer.evaluate.record import Recovery, Replay, ReplaySource
from trainer.evaluate.tasks.scores import TaskScores
from trainer.metrics.tracker import by_source
from trainer.mix.mixing import Mixing
from trainer.model.tune.prompt import virtual_off
from trainer.objective.preference.judged import JudgedPairs
from trainer.objective.preference.judged_answers import JudgedAnswers
from trainer.run.asking import base_identity, build_task_scores
from trainer.run.held_out_answers import HeldOutAnswers, held_out_answers, tell_answers
from trainer.run.held_out_pairs import HeldOutPairs, held_out_pairs, logged_pairs, tell
from trainer.run.probe_rises import ProbeRises
from trainer.run.probes import build_probes
from trainer.run.references import RunReferences
from trainer.run.scored_pairs import ScoredPairs, scored_pairs
from trainer.run.session import Session

H = TypeVar("H", HeldOutPairs, HeldOutAnswers)


class Evaluator:
    """Measures the base before the first step, the trained model afterwards."""

    def __init__(
        self,
        policy: Policy,
        held_out: HeldOut,
        mixing: Mixing,
        texts: Texts,
        forgetting: ForgettingMeasurement | None,
        task_scores: TaskScores | None,
        takes_kl: bool,
        pairs: HeldOutPairs | HeldOutAnswers | ScoredPairs | None = None,
    ) -> None:
        """Take the model, the text, and what compares it with its base; `takes_kl` at every evaluation.

        Args:
            pairs: What judges held-out pairs, by their losses or by their scores, or held-out answers with labels; None
                where the loss is of neither.
        """
        self._policy = policy
        self._held_out = held_out
        self._pairs = pairs if isinstance(pairs, HeldOutPairs) else None
        self._answers = pairs if isinstance(pairs, HeldOutAnswers) else None
        self._scored = pairs if isinstance(pairs, ScoredPairs) else None
        self._judged: dict[str, JudgedPairs] = {}
        self._judged_answers: dict[str, JudgedAnswers] = {}
        self._mixing = mixing
        self._texts = texts
        self._forgetting = forgetting
        self.task_scores = task_scores
        self._takes_kl = takes_kl
        self._newest: tuple[int, dict[str, PieceLosses]] = (-1, {})
        self._rises = ProbeRises(policy is None or policy.mesh.is_first)

    def require_base(self, state: TrainState) -> None:
        """Refuse to go on where the ratio would no longer answer to the KL that it is to answer to.

        Raises:
            DataError: The base was asked before the first step, and what it said is gone.
        """
        has_base = self._forgetting is not None and self._forgetting.has_base
        epsilon = self._mixing.replay.epsilon_kl
        if state.last_evaluated_step >= 0 and _answers_to_kl(self._mixing.replay) and not has_base:
            raise DataError(
                f"`replay.epsilon_kl` must be null where nobody knows what the base said of the conversations, but is "
                f"{epsilon:g}, and {BASE_EVALUATION} of this run is gone. Bring it back, or make it again: palimpsest "
                "evaluate RUN evaluate.checkpoint=base."
            )

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Return held-out losses by source; before the first step they are the base model's."""
        if self._scored is not None:
            self._judged = self._scored.judge()
            return {name: found.loss for name, found in self._judged.items()}
        if state.step == 0 and self._forgetting is not None:
            with virtual_off(self._policy.module):
                if self.task_scores is not None:
                    self.task_scores.measure_base(self._held_out.heed)
                losses = self._forgetting.measure_base()
                preferred = self._pairs or self._answers
                if preferred is not None:
                    self._judge(held_out_losses(self._policy, preferred.alone))
                return losses
        found = held_out_losses(self._policy, self._held_out)
        self._newest = (state.step, found.pieces)
        self._judge(found)
        return {name: losses.mean for name, losses in found.pieces.items()}

    def _judge(self, found: HeldOutLosses) -> None:
        if self._pairs is not None:
            self._judged = self._pairs.judge(found)
        if self._answers is not None:
            self._judged_answers = self._answers.judge(found)

    def mean(self, losses: Mapping[str, float]) -> float:
        """Return the mean over sources of the newest evaluation.

        With held-out pairs or labelled answers it is made as the `loss` of a step is: the mean over sources of such of
        all that is learnt of them, and `text_weight` times the mean over other sources that are learnt.
        """
        preferred = self._pairs or self._answers
        judged: Mapping[str, JudgedPairs | JudgedAnswers] = self._judged_answers or self._judged
        if preferred is None or not judged:
            return sum(losses.values()) / len(losses)
        whole = [found.whole for found in judged.values()]
        others = [
            loss
            for name, loss in losses.items()
            if name not in judged and self._mixing.sources[name].role is not Role.probe
        ]
        text = sum(others) / len(others) if others else 0.0
        return sum(whole) / len(whole) + preferred.options.text_weight * text

    def preferences(self, state: TrainState) -> dict[str, float]:
        """Return how the newest evaluation judges held-out pairs or answers, as it is logged, and say so on rank 0."""
        is_begun = state.step > 0
        if self._answers is not None:
            if self._policy.mesh.is_first and is_begun:
                tell_answers(self._judged_answers)
            return self._answers.logged(self._judged_answers)
        if self._policy.mesh.is_first and is_begun:
            kept = self._scored or self._pairs
            tell(self._judged, state.step, None if kept is None else kept.run_dir)
        if self._pairs is None:
            return logged_pairs(self._judged, ranks=True)
        return self._pairs.logged(self._judged, is_begun)

    def drift(self, state: TrainState) -> dict[str, float]:
        """Return how far the newest evaluation is from the base, as it is logged.

        The rise of each source, the mean rise of those that are no target, KL, and the rise on probes.
        """
        if state.step == 0 or self._scored is not None:
            return {}
        rises = {
            name: loss - state.base_losses[name]
            for name, loss in state.last_losses.items()
            if name in state.base_losses
        }
        found = {by_source(FORGETTING, name): rise for name, rise in rises.items()}
        kept = [rise for name, rise in rises.items() if self._mixing.sources[name].role is not Role.target]
        if kept:
            found[FORGETTING] = sum(kept) / len(kept)
        if self._takes_kl and self._forgetting is not None:
            kl = self._forgetting.divergence_means()
            found |= {by_source("kl", name): nats for name, nats in kl.items()}
            found |= {KL_MEAN: sum(kl.values()) / len(kl)} if kl else {}
        if self._forgetting is not None:
            found |= self._rises.take(self._forgetting.probes_during(state.step), state.step)
        return found

    def finish(self, state: TrainState, recover: Callable[[], Recovery | None]) -> bool:
        """Compare the tuned model with its base and tell whether it was; `recover` is the recovery probe."""
        if self._forgetting is None:
            return False
        if self._newest[0] != state.step:
            self.evaluate(state)
        tasks = (
            self.task_scores.measure_tuned(state.step, self._held_out.heed)
            if self.task_scores is not None
            else []
        )
        replay = replay_record(self._mixing, state)
        return self._forgetting.compare(state, self._newest[1], self._texts, replay, tasks, recover)


def build_evaluator(
    session: Session, mixing: Mixing, heed: Callable[[], None], references: RunReferences | None = None
) -> Evaluator:
    """Build what measures a run. Collective: every rank.

    Args:
        heed: Called between batches; raises on all ranks where one is asked to stop.
        references: What the model said of held-out answers before the first step, where the loss needs it.
    """
    return Evaluator(
        session.policy,
        dataclasses.replace(session.held_out(), heed=heed),
        mixing,
        texts_of(session),
        build_forgetting(session, heed),
        build_task_scores(session),
        session.config.evaluate.during.kl or _answers_to_kl(session.config.replay),
        scored_pairs(session, heed)
        or _with_heed(held_out_pairs(session, None if references is None else references.validation), heed)
        or _with_heed(held_out_answers(session, references), heed),
    )


def _with_heed(pairs: H | None, heed: Callable[[], None]) -> H | None:
    if pairs is None:
        return None
    return dataclasses.replace(pairs, held_out=dataclasses.replace(pairs.held_out, heed=heed))


def _answers_to_kl(replay: ReplayConfig) -> bool:
    return replay.controller is RatioController.hold and replay.epsilon_kl is not None


def texts_of(session: Session) -> Texts:
    """Return where the text of a run's held-out pieces is found."""
    return Texts(session.stores, session.tokenizer)


def build_forgetting(
    session: Session, heed: Callable[[], None] = lambda: None
) -> ForgettingMeasurement | None:
    """Return the measurement of the base against the tuned model, if there is text to measure on."""
    config = session.config
    has_text = any(store.validation.num_packs for store in session.stores.values())
    if not config.evaluate.forgetting or not (has_text or config.evaluate.has_tasks):
        return None
    prompts = prompts_for_kl(config.data, config.evaluate.kl_packs, texts_of(session), session.pad_id)
    held_out, prompts = (dataclasses.replace(one, heed=heed) for one in (session.held_out(), prompts))
    base, digest = base_identity(session), data_digest(session.stores)
    probes = build_probes(session, base, heed)
    subject = Subject(session.policy, held_out, prompts, probes, config.evaluate.forgotten_documents)
    return ForgettingMeasurement(session.run_dir, config.name, subject, base, config.data, digest)


def replay_record(mixing: Mixing, state: TrainState) -> Replay | None:
    """Return what the forgetting report says of replay; None without it."""
    if not mixing.has_replay:
        return None
    epochs = mixing.epochs_by_source(state)
    return Replay(
        ratio_asked=mixing.mean_ratio,
        ratio_reached=mixing.share_reached(state),
        schedule=mixing.replay.schedule.value,
        controller=mixing.replay.controller.value,
        sources=tuple(
            ReplaySource(
                name=name,
                role=source.role.value,
                targets=state.targets_by_source.get(name, 0),
                tokens=state.tokens_by_source.get(name, 0),
                epochs=epochs.get(name, 0.0),
                max_epochs=source.max_epochs,
            )
            for name, source in mixing.trained_sources.items()
        ),
    )
