"""What `palimpsest init` saw of a model and of data, in lines, and the sizes that it chooses because of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.command.plan import fit_sentence
from trainer.config.data import DataConfig
from trainer.config.many import many
from trainer.config.model import ModelConfig
from trainer.config.schema import RunConfig
from trainer.data.rows.guess import Guess, Holding
from trainer.data.types import RowProblem
from trainer.errors import DataError, ModelError, TrainerError
from trainer.evaluate.compare import MIN_DOCUMENTS
from trainer.forecast.shapes import decoder_shape, knows

SEQ_LEN = 4096
"""Tokens of a pack where data and the model's context have room for them: that of the recipes."""
LEAST_SEQ_LEN = 512
BATCH_TOKENS = 131072
STEPS = 20
"""Steps of an epoch that there should be before a step takes BATCH_TOKENS."""
CHARS_A_TOKEN = 3
"""Where no tokenizer.json is here; a little less than English has, so that more tokens are expected than there are."""
MOST_HELD_OUT = 0.25
"""Share of few documents that is held out at most: the others are what is learnt."""
TEMPLATE_TOKENS, TURN_TOKENS = 64, 16
"""Room for what a chat template writes of its own, and for what it writes around a turn."""
BY_WORDS = {
    "et learn.reasoning of the source to ": "ive reasoning=",
    "et model.chat_template to": "ive chat_template=FILE,",
}
"""How a fix begins that names keys of a configuration, and how with the words of `palimpsest init`: Set or set, Give or
give."""
MAX_CHARS = 1_000_000
"""Characters of the longest document that are encoded; the rest is taken to be like them."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What an experiment sets, and why."""

    seq_len: int
    batch_tokens: int
    because: str
    """Why packs are as long as they are."""
    num_steps: int
    """Steps of an epoch, about; of what was read where that is not all."""


@dataclass(frozen=True, slots=True)
class ShareHeldOut:
    """The share of documents that an experiment holds out, and why."""

    frac: float
    because: str


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of the data, with those of a chat template only guessed."""

    longest: int
    total: int
    is_counted: bool
    """Whether the model's tokenizer was asked."""


def count_tokens(folder: Path | None, holding: Holding, is_bytes: bool = False) -> Tokens:
    """Return the tokens of what was read; without torch, so of the tokenizer's own file only.

    Args:
        is_bytes: The model's tokens are bytes.
    """
    if holding.num_ids:
        return Tokens(holding.longest_ids, holding.num_ids, True)
    text = holding.longest[:MAX_CHARS]
    rate, is_counted = 1 / CHARS_A_TOKEN, False
    file = folder / "tokenizer.json" if folder is not None else None
    if text and is_bytes:
        rate, is_counted = len(text.encode()) / len(text), True
    elif text and file is not None and file.is_file():
        from tokenizers import Tokenizer

        rate, is_counted = len(Tokenizer.from_file(str(file)).encode(text).ids) / len(text), True
    return Tokens(math.ceil(len(holding.longest) * rate), math.ceil(holding.num_chars * rate), is_counted)


def choose_sizes(holding: Holding, tokens: Tokens, context: int | None, num_gpus: int) -> Sizes:
    """Return packs that hold the longest document, and steps of which an epoch has several."""
    most = min(SEQ_LEN, context or SEQ_LEN)
    around = TEMPLATE_TOKENS + TURN_TOKENS * holding.longest_turns if holding.longest_turns else 0
    seq_len = most
    while holding.is_whole and seq_len // 2 >= max(LEAST_SEQ_LEN, tokens.longest + around):
        seq_len //= 2
    if seq_len < most:
        because = f"the longest document has about {tokens.longest:,} tokens"
    else:
        because = f"the model's context is {context}" if context else "at most the model's context"
    # One rank a GPU of this machine, each of which has a pack of a step.
    unit = max(num_gpus, 1)
    num_packs = max(tokens.total // seq_len, 1)
    a_step = min(BATCH_TOKENS // seq_len, num_packs // STEPS) // unit * unit
    a_step = max(a_step, unit)
    return Sizes(seq_len, a_step * seq_len, because, max(math.ceil(num_packs / a_step), 1))


def choose_held_out(holding: Holding) -> ShareHeldOut:
    """Return the share of documents that gives the comparison with the base an interval, where there are enough.

    A hash chooses them, so that about so many are held out: twice those that an interval takes.
    """
    num, usual = holding.num_documents, DataConfig().validation_frac
    if not holding.is_whole:
        return ShareHeldOut(usual, "the usual share; not all rows were read")
    if num < 2:
        return ShareHeldOut(usual, "of one document none can be held out")
    frac = min(max(usual, math.ceil(200 * MIN_DOCUMENTS / num) / 100), MOST_HELD_OUT)
    about = max(round(num * frac), 1)
    of = f"about {about} of {many(num, 'document')}"
    if about < MIN_DOCUMENTS:
        return ShareHeldOut(frac, f"{of}, but an interval takes {MIN_DOCUMENTS}: give more documents")
    return ShareHeldOut(
        frac, f"{of}; fewer than {MIN_DOCUMENTS} give the comparison with the base no interval"
    )


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
    beside = " without the chat template" if holding.longest_turns else ""
    return (
        f"Data: {data} is {guess.title} (format: {guess.source.format.value}"
        f"{f', read from {columns}' if columns else ''}); {holding.rows_read}, with about {tokens.total:,} tokens; "
        f"the longest document has about {tokens.longest:,}{beside}{asked}."
    )


def say_model(name: str, config: dict[str, Any], context: int | None, template: str) -> str:
    """Return what was found of the model.

    Args:
        config: The contents of its config.json; empty where there is none here.
    """
    return f"Model: {name}: {', '.join([*_shape(config), *([f'context {context:,}'] if context else []), template])}."


def check_rendered(folder: Path, chat_template: str, guess: Guess) -> None:
    """Refuse what `prepare` would: rows that the chat template does not render; loads torch where some might be such.

    Args:
        chat_template: A file that takes the place of the model's own; empty for that.
    Raises:
        DataError: Names one row of every kind that is refused, and the fix.
    """
    rows, source = guess.holding.peculiar, guess.holding.read_as
    if not rows or source is None:
        return
    from trainer.data.tokens.tokenise import encode_batch
    from trainer.data.types import RowBatch
    from trainer.model.tokenizer import configured_tokenizer

    tokenizer = configured_tokenizer(ModelConfig(chat_template=chat_template or None), str(folder))
    problems = [
        one
        for file, unit, number, row in rows
        for one in encode_batch(RowBatch(file, unit, [number], [row]), source, False, tokenizer).problems
    ]
    if problems:
        raise DataError(
            f"`data` must hold rows that the model's chat template renders, but {len(problems)} of "
            f"{many(len(rows), 'row')} with tools, reasoning, system or other turns it does not:"
            f"{''.join(_by_kind(problems))}"
        )


def _by_kind(problems: Sequence[RowProblem]) -> Iterator[str]:
    """Yield a line for every kind of rows that are refused: the first of them, how many more there are, and the fix."""
    kinds: dict[tuple[str, str], list[RowProblem]] = {}
    for one in problems:
        kinds.setdefault((one.rule, one.fix), []).append(one)
    for (rule, fix), found in kinds.items():
        more = f" and {many(len(found) - 1, 'more row')}" if len(found) > 1 else ""
        for keys, words in BY_WORDS.items():
            fix = fix.replace(f"S{keys}", f"G{words}").replace(f"s{keys}", f"g{words}")
        yield f"\n  - {found[0].where}{more}: {found[0].value}. A row must {rule}. {fix}"


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
