"""The tokenizer of the run or folder that `tune.start` names, held against this run's: an adapter learnt its tokens."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from trainer.config.model import ModelConfig
from trainer.config.snapshot import config_path
from trainer.config.start import KEY, start_refused
from trainer.config.store import load_config
from trainer.errors import ModelError, TrainerError
from trainer.model.tokenizer import Tokenizer, configured_tokenizer

_LOG = logging.getLogger(__name__)
FILES = ("tokenizer.json", "tokenizer_config.json")
"""One of which a folder with a tokenizer has."""


def check_start_tokenizer(model: ModelConfig, place: Path, source: str) -> None:
    """Refuse an adapter of other token ids, and say where it learnt other special tokens or another chat template.

    Args:
        place: Folder with an adapter, or a run directory; one without a tokenizer tells nothing.
        source: This run's base.
    Raises:
        ModelError: A token has another id in this run.
    """
    named = _tokenizer_named(model, place)
    if named is None:
        return
    try:
        theirs = configured_tokenizer(named, source)
    except TrainerError as error:
        _LOG.warning("`%s`: the tokenizer of %s cannot be compared with this run's: %s", KEY, place, error)
        return
    ours = configured_tokenizer(model, source)
    if ours.digest == theirs.digest:
        return
    _refuse_other_ids(ours, theirs, place)
    different = list(_differences(ours, theirs))
    if different:
        _LOG.warning(
            "`%s`: the adapter of %s was trained with another tokenizer than this run has: %s. It learnt answers in "
            "that form. %s goes on as it was.",
            KEY,
            place,
            "; ".join(different),
            _fix(named, place),
        )


def _tokenizer_named(model: ModelConfig, place: Path) -> ModelConfig | None:
    """Return the configuration of the tokenizer that an adapter was trained with; None where nothing tells."""
    if config_path(place).is_file():
        return load_config(config_path(place)).model
    if any((place / name).is_file() for name in FILES):
        return dataclasses.replace(model, tokenizer=str(place), chat_template=None)
    return None


def _refuse_other_ids(ours: Tokenizer, theirs: Tokenizer, place: Path) -> None:
    here, there = ours.hf.get_vocab(), theirs.hf.get_vocab()
    other = sorted((there[token], token) for token in there if here.get(token) != there[token])
    if not other:
        return
    token_id, token = other[0]
    found = f"has it as {here[token]}" if token in here else "does not have it"
    rule = (
        f"an adapter of this run's tokenizer, but was trained with {token!r} as id {token_id}, and this run's {found} "
        f"({len(other):,} of {len(there):,} tokens differ)"
    )
    raise ModelError(start_refused(place, rule, "Set model.tokenizer to the one that it was trained with."))


def _differences(ours: Tokenizer, theirs: Tokenizer) -> list[str]:
    """Return in words which special tokens are others, and whether the chat template is."""
    here, there = ours.hf.special_tokens_map, theirs.hf.special_tokens_map
    found = [
        f"{role} is {there.get(role)!s}, here {here.get(role)!s}"
        for role in sorted({*here, *there})
        if str(here.get(role)) != str(there.get(role))
    ]
    if ours.adds_bos != theirs.adds_bos:
        found.append(
            f"documents {'begin' if theirs.adds_bos else 'do not begin'} with BOS, here they "
            f"{'do' if ours.adds_bos else 'do not'}"
        )
    if ours.hf.chat_template != theirs.hf.chat_template:
        found.append("the chat template is another" if theirs.hf.chat_template else "it had no chat template")
    return found


def _fix(named: ModelConfig, place: Path) -> str:
    """Return the words with which this run would have the tokenizer that the adapter learnt."""
    given = {"model.tokenizer": named.tokenizer, "model.chat_template": named.chat_template}
    words = [f"{key}={value}" for key, value in given.items() if value is not None]
    return " ".join(words) or f"The same without model.tokenizer and model.chat_template, as in {place},"
