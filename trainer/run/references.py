"""The reference of a run of preferences: which answers it is asked about, and what shapes what it says."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.config.objective import ObjectiveKind
from trainer.config.preference import PreferenceLoss
from trainer.config.tune import Init
from trainer.data.pack.mismatched import MismatchedSplit
from trainer.data.pack.refs import PackRef, read_micro_batch
from trainer.data.store.prepared import digest_of
from trainer.data.store.store import SplitStore
from trainer.data.types import Int64s, Unit
from trainer.errors import DataError
from trainer.mix.mixing import Mixing
from trainer.objective.preference.answer_objective import Mismatched, ReadMismatched
from trainer.run.session import Session
from trainer.teacher.answer_sums import AnswerPacks, AnswerSums
from trainer.teacher.start_answers import AnswerQuestion, open_answer_sums

_LOG = logging.getLogger(__name__)
_Split = tuple[SplitStore, Int64s]
"""A split and the packs of it that are asked about."""


@dataclass(frozen=True, slots=True)
class RunReferences:
    """What the model said of answers before the first step."""

    train: AnswerSums
    validation: AnswerSums
    mismatched: ReadMismatched | None = None
    """Reads training packs with answers behind the prompts of others; None where nothing is measured on them."""
    strange_validation: AnswerSums | None = None
    """Of held-out packs with answers behind the prompts of others; None where nothing is measured on them."""


def build_references(session: Session, mixing: Mixing) -> RunReferences | None:
    """Ask for the reference, or find it; None where the loss needs none. Collective: every rank.

    Call it before a checkpoint is loaded.

    Raises:
        GivenUp: A rank was asked to stop meanwhile.
    """
    config = session.config
    options = config.objective.preference
    if config.objective.kind is not ObjectiveKind.preference or not options.needs_reference:
        return None
    stores = list(session.stores.values())
    answers = [number for number, store in enumerate(stores) if store.train.unit is not Unit.document]
    held_out = {
        number: np.arange(min(stores[number].validation.num_packs, config.data.max_validation_packs))
        for number in answers
    }
    to_draw = mixing.to_draw(answers)
    splits = [
        AnswerPacks([store.train for store in stores], to_draw),
        AnswerPacks([store.validation for store in stores], held_out),
    ]
    strange = strange_splits([store.train for store in stores])
    if options.loss is PreferenceLoss.kto:
        strange_held_out = strange_splits([store.validation for store in stores])
        splits += [AnswerPacks(strange, to_draw), AnswerPacks(strange_held_out, held_out)]
        _say_how_strange(_drawn(strange, to_draw), _drawn(strange_held_out, held_out))
    question = AnswerQuestion(
        splits=splits,
        model=shaping(session),
        dtype=config.zero.dtype,
        micro_batch_size=config.evaluate.micro_batch_size,
        pad_id=session.pad_id,
    )
    train, validation, *rest = open_answer_sums(session.policy, question, config.data.cache_dir, session.heed)
    if not rest:
        return RunReferences(train, validation)
    return RunReferences(train, validation, _Strangers(strange, rest[0], session.pad_id), rest[1])


def _drawn(stores: Sequence[SplitStore], packs: Mapping[int, Int64s]) -> list[_Split]:
    return [(stores[source], drawn) for source, drawn in packs.items()]


def strange_splits(stores: Sequence[SplitStore]) -> list[SplitStore]:
    """Return splits with answers behind the prompts of others where they have labels; the rest as they are."""
    return [MismatchedSplit(store) if store.unit is Unit.answer else store for store in stores]


@dataclass(frozen=True, slots=True)
class _Strangers:
    """Reads training packs with answers behind the prompts of others. Implements ReadMismatched."""

    stores: Sequence[SplitStore]
    sums: AnswerSums
    pad_id: int

    def __call__(self, refs: Sequence[PackRef]) -> Mismatched:
        """Read packs; of sources without labels as they are, with nothing that counts."""
        found = []
        for ref in refs:
            store = self.stores[ref.source]
            if isinstance(store, MismatchedSplit):
                found.append(store.is_strange(ref.pack))
            else:
                found.append(np.zeros(int(store.pack_units[ref.pack]), dtype=np.bool_))
        micro = read_micro_batch(self.stores, refs, self.pad_id)
        return Mismatched(micro, self.sums.of(refs), np.concatenate(found))


def _say_how_strange(stores: Sequence[_Split], held_out: Sequence[_Split]) -> None:
    """Say how many answers the point of KTO is measured on.

    Raises:
        DataError: There are none to train on.
    """
    num_strange, num_all = _count_strange(stores)
    if not num_strange:
        raise DataError(_why_none(stores, num_all))
    _LOG.info(
        "KTO measures its point of reference on %d of %d answers, and on %d of %d held out, each behind the prompt of "
        "another in its pack.",
        num_strange,
        num_all,
        *_count_strange(held_out),
    )


def _why_none(stores: Sequence[_Split], num_all: int) -> str:
    """Return why no answer to train on comes behind the prompt of another, and what helps against that."""
    measured = "on which KTO measures its point of reference"
    for store, packs in stores:
        prompts: set[bytes] = set()
        if isinstance(store, MismatchedSplit):
            for pack in packs.tolist():
                prompts |= store.prompts(pack)
                if len(prompts) > 1:
                    return (
                        f"`data.seq_len` must leave room for two answers to different prompts in a pack, {measured}, "
                        f"but no pack has any of {num_all} answers instead. Raise data.seq_len, or set "
                        "objective=apo_zero_unpaired."
                    )
    return (
        f"`data.sources` must have answers to different prompts in a source, {measured}, but the {num_all} answers to "
        "train on are to one prompt by source instead. Set objective=apo_zero_unpaired, which needs no such point, or "
        "add rows with other prompts."
    )


def _count_strange(splits: Sequence[_Split]) -> tuple[int, int]:
    """Return how many answers of some packs come behind the prompt of another, and how many there are."""
    strange = [
        store.is_strange(pack)
        for store, packs in splits
        if isinstance(store, MismatchedSplit)
        for pack in packs.tolist()
    ]
    return sum(int(found.sum()) for found in strange), sum(map(len, strange))


def shaping(session: Session) -> dict[str, object]:
    """Return what shapes what the model says before the first step, beside the text. Collective: every rank.

    The options of an adapter that begins as its base are not in it: they shape no sum.
    """
    config, loaded = session.config, session.loaded
    found: dict[str, object] = {
        "base": session.begun_digest(),
        "attention": loaded.attention.name,
        "kernels": loaded.kernels,
        "device": session.mesh.device.type,
        "in_rows": session.policy.in_rows,
        "new_tokens": list(config.model.new_tokens),
    }
    if config.tune.init is Init.pissa:  # moves the base by rounding, each seed in its own way
        found["pissa"] = [digest_of(dataclasses.asdict(config.tune)), config.seed]
    return found
