"""The tokenizer of a teacher, held against the student's: what the teacher says of an id must be said of its token."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.config.schema import RunConfig
from trainer.config.teacher import KEY, of_teacher, teacher_model
from trainer.data.store.store import SplitStore
from trainer.errors import ModelError
from trainer.model.load import read_config
from trainer.model.resolve import resolve_model
from trainer.model.tokenizer import Tokenizer, configured_tokenizer

_LOG = logging.getLogger(__name__)
FIX = (
    "Name a teacher of the same family, or let the student learn the teacher's samples (docs/distillation.md, "
    "sequence distillation)."
)


@dataclass(frozen=True, slots=True)
class OtherIds:
    """Ids that both models have and that are another token in each, or none in one."""

    tokens: Mapping[int, tuple[str | None, str | None]]
    """By id: the student's token and the teacher's."""
    num_ids: int
    """Ids that both models have."""
    num_own: int
    """Ids that the student has."""


def check_teacher_tokenizer(config: RunConfig, ours: Tokenizer) -> OtherIds:
    """Refuse a teacher whose ordinary tokens or special ones have other ids; return the added ids that differ.

    Raises:
        ModelError: It is of another tokenizer, or its tokenizer cannot be read.
    """
    source, theirs, found = _read_teacher(config, ours)
    other, num_ids = found.tokens, found.num_ids
    added = {*ours.hf.added_tokens_decoder, *theirs.hf.added_tokens_decoder}
    ordinary = [i for i, (here, there) in other.items() if i not in added and None not in (here, there)]
    moved = _moved_specials(ours, theirs, num_ids)
    if refused := [*ordinary, *moved]:
        here, there = other[refused[0]]
        raise ModelError(
            f"`{KEY}` must be a model with the student's tokenizer, but {source} has {_shown(there)} as id "
            f"{refused[0]} and the student {_shown(here)} ({len(other):,} of {num_ids:,} ids differ). {FIX}"
        )
    for role in ("bos", "eos"):
        here, there = (getattr(one, f"{role}_id") for one in (ours, theirs))
        if here != there:
            _LOG.info(
                "The teacher's %s token is the id %s and the student's %s, as those of a base model and its instruct "
                "model are: the data is as the student's tokenizer makes it.",
                role.upper(),
                there,
                here,
            )
    return found


def ids_of_teacher(config: RunConfig, ours: Tokenizer) -> OtherIds:
    """Return the ids that are other tokens to a teacher that was checked already."""
    return _read_teacher(config, ours)[2]


def _read_teacher(config: RunConfig, ours: Tokenizer) -> tuple[str, Tokenizer, OtherIds]:
    """Return where a teacher is, its tokenizer, and how its ids differ from the student's."""
    model, cache_dir = teacher_model(config.objective.distill, config.model), Path(config.data.cache_dir)
    try:
        source = resolve_model(model, cache_dir)
        theirs = configured_tokenizer(model, source)
        num_theirs = int(read_config(source, model).get_text_config().vocab_size)
    except ModelError as error:
        raise ModelError(of_teacher(str(error))) from error
    own = read_config(resolve_model(config.model, cache_dir), config.model)
    num_own = max(int(own.get_text_config().vocab_size), ours.vocab_size)
    num_ids = min(num_own, num_theirs)
    return source, theirs, OtherIds(_other(ours, theirs, num_ids), num_ids, num_own)


def check_used_ids(others: OtherIds, splits: Mapping[str, SplitStore], distilled: Sequence[str]) -> None:
    """Refuse data that holds an id which means nothing to the teacher, or something else.

    Reads the packs of what is distilled only where ids differ.

    Raises:
        ModelError: Names the id, the token and the source.
    """
    for name in distilled:
        split = splits[name]
        strange = np.array(sorted(others.tokens), dtype=np.int64)
        differs = bool(len(strange)) or others.num_own > others.num_ids
        for pack in range(split.num_packs if differs else 0):
            used = np.unique(split.pack(pack).tokens)
            found = [*used[used >= others.num_ids].tolist(), *np.intersect1d(used, strange).tolist()]
            if found:
                here, there = others.tokens.get(found[0], (None, None))
                raise ModelError(
                    f"`{KEY}` must know every token of what is distilled, but data.sources.{name} has the id "
                    f"{found[0]}, which is {_shown(here)} to the student and {_shown(there)} to the teacher. {FIX}"
                )
    if others.tokens:
        _LOG.info("%d ids are other tokens to the teacher; the data has none of them.", len(others.tokens))


def _other(ours: Tokenizer, theirs: Tokenizer, num_ids: int) -> dict[int, tuple[str | None, str | None]]:
    """Return the ids that are not the same token, those that only the student can write included."""
    here = {number: token for token, number in ours.hf.get_vocab().items()}
    there = {number: token for token, number in theirs.hf.get_vocab().items() if number < num_ids}
    numbers = sorted({*here, *there})
    return {n: (here.get(n), there.get(n)) for n in numbers if here.get(n) != there.get(n)}


def _moved_specials(ours: Tokenizer, theirs: Tokenizer, num_ids: int) -> list[int]:
    """Return the ids of special tokens that the other model has under another id."""
    here, there = ours.hf.get_vocab(), theirs.hf.get_vocab()
    texts = {*ours.special_texts, *theirs.special_texts} & {*here} & {*there}
    return sorted(here[text] for text in texts if here[text] != there[text] and here[text] < num_ids)


def _shown(token: str | None) -> str:
    return "no token" if token is None else repr(token)
