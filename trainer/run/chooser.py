"""Replay that is chosen by what the model is losing: asks the model, and the base before the first step.

Collective everywhere: every rank, same order.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np

from trainer.checkpoint.state import TrainState
from trainer.data.pack.refs import PackRef
from trainer.engine.policy import Policy
from trainer.mix.mixing import Mixing
from trainer.mix.replay_choice import Choice
from trainer.mix.replay_choices import ReplayChoices
from trainer.run.references import shaping
from trainer.run.session import Session
from trainer.teacher.answer_sums import AnswerPacks, AnswerSums
from trainer.teacher.start_answers import AnswerQuestion, ask_sums, open_answer_sums

_LOG = logging.getLogger(__name__)


class ReplayChooser:
    """Scores candidates by the model as it is.

    A pack is alone in its forward pass, so that what is said of it depends on no neighbour and no number of ranks.
    """

    def __init__(
        self,
        policy: Policy,
        choices: ReplayChoices,
        question: AnswerQuestion,
        base: AnswerSums,
        heed: Callable[[], None],
    ) -> None:
        """Take the decisions of the run, what is asked of packs, and what the base said of them."""
        self._policy, self._choices, self._question = policy, choices, question
        self._base, self._heed = base, heed

    def is_due(self, state: TrainState) -> bool:
        """Tell whether replay is to be chosen now."""
        return self._choices.is_due(state)

    def choose(self, state: TrainState) -> list[Choice]:
        """Choose what comes from the step after the next on, keep it in the state, and return it.

        Raises:
            GivenUp: A rank was asked to stop meanwhile; nothing is decided.
        """
        candidates = self._choices.candidates(state)
        rises = [self._rises(each.refs) for each in candidates]
        return self._choices.decide(state, candidates, rises)

    def _rises(self, refs: Sequence[PackRef]) -> list[float]:
        """Return how much higher the mean loss of each pack is than the base's, in nats a supervised token."""
        now_D = ask_sums(self._policy, self._question, [refs], self._heed)
        asked = self._question.splits[0]
        sizes = [int(asked.sizes(ref.source)[ref.pack]) for ref in refs]
        now = [float(part_D.sum()) for part_D in np.split(now_D, np.cumsum(sizes)[:-1])]
        base = [float(self._base.of([ref]).sum()) for ref in refs]
        targets = [int(asked.stores[ref.source].pack_targets[ref.pack]) for ref in refs]
        return [(was - is_) / max(num, 1) for was, is_, num in zip(base, now, targets, strict=True)]


def build_chooser(session: Session, mixing: Mixing) -> ReplayChooser | None:
    """Ask the base about the packs that may be candidates, or find what it said; None where replay is not chosen.

    Call it before a checkpoint is loaded. Collective: every rank.

    Raises:
        GivenUp: A rank was asked to stop meanwhile.
    """
    if mixing.choices is None:
        return None
    config = session.config
    packs, said = mixing.to_score()
    if session.mesh.is_first:
        for sentence in said:
            _LOG.warning("%s", sentence)
    asked = AnswerPacks([store.train for store in session.stores.values()], packs)
    question = AnswerQuestion(
        [asked], shaping(session), config.zero.dtype, 1, session.pad_id, "replay documents"
    )
    (base,) = open_answer_sums(session.policy, question, config.data.cache_dir, session.heed)
    return ReplayChooser(session.policy, mixing.choices, question, base, session.heed)
