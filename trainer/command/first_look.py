"""What `palimpsest init` saw of a model and of data, in lines, and the sizes that it chooses because of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.command.plan import fit_sentence
from trainer.command.row_tokens import CHARS_A_TOKEN, ENDS_TOKENS, Tokens
from trainer.config.data import DataConfig, Format
from trainer.config.many import many
from trainer.config.schema import RunConfig
from trainer.data.rows.guess import Guess, Holding
from trainer.data.store.held_back import choose_validation, split_hash
from trainer.errors import ModelError, TrainerError
from trainer.evaluate.compare import MIN_DOCUMENTS
from trainer.forecast.shapes import decoder_shape, knows

SEQ_LEN = 4096
"""Tokens of a pack where data and the model's context have room for them: that of the recipes."""
LONGEST_SEQ_LEN = 32768
"""Tokens of a pack where a conversation is longer, at most: memory grows with them."""
LEAST_SEQ_LEN = 512
MOST_HELD_OUT = 0.25
"""Share of few documents that is held out at most: the others are what is learnt."""
BATCH_TOKENS = 131072
STEPS = 20
"""Steps of an epoch that there should be before a step takes BATCH_TOKENS."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What an experiment sets, and why."""

    seq_len: int
    batch_tokens: int
    because: str
    """Why packs are as long as they are."""
    num_steps: int
    """Steps of an epoch, about; of what was read where that is not all."""
    num_long: int = 0
    """Documents of a known length that are longer than a pack, and that `prepare` would stop at."""


@dataclass(frozen=True, slots=True)
class ShareHeldOut:
    """The share of documents that an experiment holds out, and why."""

    frac: float
    because: str
    share: float
    """Of the documents that were read, those that are held out."""


def choose_sizes(
    guess: Guess, tokens: Tokens, context: int | None, num_gpus: int, share_held_out: float
) -> Sizes:
    """Return packs that hold the longest document where the model's context does, and steps of which an epoch has some.

    Documents of text and of ids go on in the next pack, so that theirs are no longer than a recipe's.
    """
    holding, is_cut = guess.holding, guess.source.format in (Format.text, Format.ids)
    ends = 0 if tokens.template else ENDS_TOKENS
    lengths = [length + ends for length in tokens.lengths or [tokens.longest]]
    limit = min(LONGEST_SEQ_LEN, context or LONGEST_SEQ_LEN)
    most = min(SEQ_LEN, limit)
    longest = max((length for length in lengths if length <= limit), default=0)
    seq_len = most
    while holding.is_whole and seq_len // 2 >= max(LEAST_SEQ_LEN, *lengths):
        seq_len //= 2
    while not is_cut and seq_len < longest:
        seq_len = min(2 * seq_len, limit)
    num_long = 0 if is_cut else sum(length > seq_len for length in lengths)
    if num_long:
        because = (
            f"the model's context is {context}" if seq_len == context else "the longest that init chooses"
        )
    elif seq_len != most or (holding.is_whole and 2 * longest > seq_len):
        because = f"the longest {holding.unit} has about {tokens.longest:,} tokens"
    else:
        because = f"the model's context is {context}" if context else "at most the model's context"
    # One rank a GPU of this machine, each of which has a pack of a step.
    unit = max(num_gpus, 1)
    num_packs = max(int(tokens.total * (1 - share_held_out)) // seq_len, 1)
    a_step = min(BATCH_TOKENS // seq_len, num_packs // STEPS) // unit * unit
    a_step = max(a_step, unit)
    return Sizes(seq_len, a_step * seq_len, because, max(math.ceil(num_packs / a_step), 1), num_long)


def choose_held_out(holding: Holding) -> ShareHeldOut:
    """Return the share of documents that gives the comparison with the base an interval, where there are enough.

    A hash chooses them, which is asked how many they are. The share is for twice those that an interval takes.
    """
    num, usual = holding.num_documents, DataConfig().validation_frac
    if not holding.is_whole:
        return ShareHeldOut(usual, "the usual share; not all rows were read", usual)
    if num < 2:
        return ShareHeldOut(usual, f"of one {holding.unit} none can be held out", 0.0)
    frac = min(max(usual, math.ceil(200 * MIN_DOCUMENTS / num) / 100), MOST_HELD_OUT)
    hashes = np.array([split_hash(digest) for digest in holding.digests], dtype=np.uint64)
    about = int(choose_validation(hashes, frac).sum())
    of = f"about {about} of {many(num, holding.unit)}"
    if about < MIN_DOCUMENTS:
        because = f"{of}, but an interval takes {MIN_DOCUMENTS}: give more {holding.unit}s"
    else:
        because = f"{of}, so that the comparison with the base has an interval, which takes {MIN_DOCUMENTS}"
    return ShareHeldOut(frac, because, about / num)


def say_held_out(held: ShareHeldOut) -> str:
    """Return what is held out, and why."""
    return f"Held out: data.validation_frac={held.frac:g} ({held.because})."


def say_fit(config: RunConfig) -> str:
    """Return whether the experiment fits the GPUs of this machine, as `palimpsest plan` says it; loads no torch."""
    try:
        said = (
            fit_sentence(config)
            or "To be counted by palimpsest plan, which loads torch for this architecture."
        )
    except TrainerError as error:
        return f"Memory: not known. {error}"
    return f"Memory: {said[0].lower()}{said[1:]}"


def say_data(data: str, guess: Guess, tokens: Tokens) -> str:
    """Return what was found in the data."""
    holding = guess.holding
    columns = ", ".join(guess.read)
    asked = "" if tokens.is_counted else f", at {CHARS_A_TOKEN} characters a token"
    return (
        f"Data: {data} is {guess.title} (format: {guess.source.format.value}"
        f"{f', read from {columns}' if columns else ''}); {holding.rows_read}, with about {tokens.total:,} tokens; "
        f"the longest {holding.unit} has about {tokens.longest:,}{asked}{tokens.template}."
    )


def say_model(name: str, config: dict[str, Any], context: int | None, template: str) -> str:
    """Return what was found of the model.

    Args:
        config: The contents of its config.json; empty where there is none here.
    """
    return f"Model: {name}: {', '.join([*_shape(config), *([f'context {context:,}'] if context else []), template])}."


def say_long(guess: Guess, sizes: Sizes) -> list[str]:
    """Return what becomes of documents that are longer than a pack, where there are such."""
    if not sizes.num_long:
        return []
    if guess.source.holds_preferences:
        of = many(guess.holding.num_documents, guess.holding.unit)
        return [f"Longer than a pack: {sizes.num_long} of {of}; they are left out and counted."]
    return [
        f"Longer than a pack: {sizes.num_long} of {many(guess.holding.num_documents, 'document')}; they are cut, and "
        "what follows a cut does not see what stands before it (long_documents: split). Set drop to leave them out."
    ]


def long_text(num_long: int, guess: Guess) -> str:
    """Return the line of a source about documents that are longer than a pack."""
    if guess.source.holds_preferences:
        return (
            f"# long_documents: drop   # {guess.holding.unit}s longer than a pack are left out, and counted"
        )
    if not num_long:
        return "# long_documents: split   # error stops at a document longer than a pack; drop and split go on, counted"
    return (
        f"long_documents: split   # cuts {many(num_long, 'document')} longer than a pack; drop leaves them out, error "
        "stops there"
    )


def say_choice(recipe: str, why: str, sizes: Sizes) -> str:
    """Return what was chosen because of it."""
    return (
        f"Chosen: recipe {recipe} ({why}); data.seq_len={sizes.seq_len} ({sizes.because}); "
        f"train.global_batch_tokens={sizes.batch_tokens} (about "
        f"{many(sizes.num_steps, 'step')} an epoch)."
    )


def _shape(config: dict[str, Any]) -> Iterator[str]:
    if not config:
        return
    yield str(config["model_type"])
    if knows(config):
        try:
            shape = decoder_shape(config, "config.json")
        except ModelError:
            # `plan` says what is wrong with it.
            return
        size = shape.num_params
        unit, word = (1e9, " billion") if size >= 1e9 else (1e6, " million")
        shown = f"{size / unit:.3g}{word}" if size >= 1e6 else f"{size:,}"
        yield f"{shape.num_layers} layers"
        yield f"{shown} parameters"
    elif isinstance(config.get("num_hidden_layers"), int):
        yield f"{config['num_hidden_layers']} layers"
