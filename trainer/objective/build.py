"""From the configuration to what a run minimises."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from trainer.config.objective import ObjectiveConfig, ObjectiveKind
from trainer.data.types import Unit
from trainer.objective.causal_lm.cross_entropy import CausalLMObjective
from trainer.objective.contract import Objective
from trainer.objective.distill.distill_objective import DistillObjective
from trainer.objective.preference.answer_objective import AnswerObjective, ReadMismatched
from trainer.objective.preference.preference_objective import PreferenceObjective
from trainer.objective.preference.read_reference import ReadReference
from trainer.objective.reward.reward_objective import RewardObjective
from trainer.objective.weighted.weighted_loss import WeightedObjective
from trainer.teacher.teacher import Teacher


def build_objective(
    options: ObjectiveConfig,
    names: Sequence[str],
    units: Sequence[Unit],
    teacher: Teacher | None = None,
    reference: ReadReference | None = None,
    mismatched: ReadMismatched | None = None,
    weights: Mapping[str, float] | None = None,
    distilled: Collection[int] = (),
) -> Objective:
    """Return the objective.

    Args:
        names: Of the sources, in their order.
        units: What the packs of each source keep whole.
        teacher: Who says what a frozen model thinks: of replay, where replay.kl asks for it, or of what is distilled.
        reference: Who says how likely answers were before the first step, where the loss needs it.
        mismatched: Who reads packs with answers behind the prompts of others, where the loss measures from them.
        weights: What a token of a source counts, by its name, where not all count alike.
        distilled: Numbers of the sources that are learnt from the teacher.
    """
    match options.kind:
        case ObjectiveKind.causal_lm:
            return CausalLMObjective(names, teacher, weights)
        case ObjectiveKind.weighted:
            return WeightedObjective(names)
        case ObjectiveKind.distill:
            assert teacher is not None, "who distils has a teacher"
            return DistillObjective(names, distilled, options.distill, teacher)
        case ObjectiveKind.reward:
            return RewardObjective(names, options.reward)
        case ObjectiveKind.preference if not options.preference.is_paired:
            assert reference is not None, "losses of answers with labels have a reference"
            return AnswerObjective(names, units, options.preference, reference, mismatched)
        case ObjectiveKind.preference:
            return PreferenceObjective(names, units, options.preference, reference)
