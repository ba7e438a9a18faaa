"""Takes encoded units one batch at a time: drops, counts and spools them, and judges the whole.

Problems are collected, not raised one by one, so that a message can say how many rows are affected.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trainer.config.data import LongDocuments
from trainer.config.many import many
from trainer.data.pack.pack import sum_runs
from trainer.data.pack.shared import shared_prefixes
from trainer.data.rows.minhash import NearDuplicates
from trainer.data.store.spool import Spool
from trainer.data.store.store import TRAIN, VALIDATION
from trainer.data.store.writer import PackOptions
from trainer.data.types import TEMPLATE_FAILS, Bools, Dropped, EncodedBatch, RowProblem, Unit, problems_said
from trainer.errors import DataError

DROPPED_SHOWN = 5
"""Rows of each cause that are named where rows were left out."""


@dataclass
class Intake:
    """Everything learnt about a source while it is read."""

    name: str
    spool: Spool
    options: PackOptions
    deduplicate: bool
    vocab_size: int | None
    counts: Counter[str] = field(default_factory=Counter)
    """rows; normalized, stripped, null_turns, other_roles, padding_ids, empty_prompts; no_completion, no_prompt,
    no_question, zero_weight, too_short, too_long, duplicates, empty, long_dropped, long_split; of preferences
    equal_sides, empty_side, different_prompts, tied_ranks, merged_prompts, long_units.
    long_pieces and long_tokens are of the documents that were split."""
    longest: int = 0
    """Tokens of the longest unit as a pack holds it, dropped ones included."""
    shown: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """Units of which samples are shown beside others, with what their rows have that not every row has."""
    _told: set[str] = field(default_factory=set)
    _problems: Counter[str] = field(default_factory=Counter)
    _num_alike: Counter[str] = field(default_factory=Counter)
    """Problems of each rule that hold the same as the first."""
    _first_problems: dict[str, RowProblem] = field(default_factory=dict)
    near: NearDuplicates | None = None
    """Finds near-duplicates among what was kept; None where they are not looked for."""
    _first_dropped: dict[str, list[Dropped]] = field(default_factory=dict)
    _first_long: str = ""
    _seen: set[bytes] = field(default_factory=set)

    def take(self, batch: EncodedBatch) -> None:
        """Take a batch in; its units follow those taken before.

        Raises:
            DataError: If an id is outside the vocabulary.
        """
        self.counts.update(batch.counts)
        self._problems.update(problem.rule for problem in batch.problems)
        for problem in batch.problems:
            first = self._first_problems.setdefault(problem.rule, problem)
            self._num_alike[problem.rule] += problem.value == first.value
        for dropped in batch.dropped:
            self._show(dropped)
        if len(batch.lengths) == 0:
            return
        self._check_ids(batch)
        prefixes = shared_prefixes(batch) if self.options.shares_prompts else None
        own = batch.lengths if prefixes is None else batch.lengths - prefixes
        lengths = sum_runs(own, batch.unit_pieces)
        self.longest = max(self.longest, int(lengths.max()))
        keep = np.array(
            [self._keeps(batch, i, length) for i, length in enumerate(lengths.tolist())], dtype=np.bool_
        )
        kept = batch.only(keep)
        self._note_traits(kept)
        self.spool.add(kept, None if prefixes is None else prefixes[np.repeat(keep, batch.unit_pieces)])

    def _note_traits(self, kept: EncodedBatch) -> None:
        """Note the first units with what not every row has, before they are spooled."""
        for index, traits in enumerate(kept.traits):
            if not set(traits) <= self._told:
                self._told.update(traits)
                self.shown[self.spool.num_units + index] = traits

    def places_shown(self, held_out: Bools) -> dict[str, Any]:
        """Return what a store notes of units of which samples are shown; nothing where there are none.

        A unit has a split, tokens of that split that stand before it, and its traits.

        Shapes:
            held_out: [units].
        """
        lengths = sum_runs(self.spool.lengths, self.spool.unit_pieces)
        places = [
            {
                "split": VALIDATION if held_out[unit] else TRAIN,
                "start": int(lengths[:unit][held_out[:unit] == held_out[unit]].sum(dtype=np.int64)),
                "traits": list(traits),
            }
            for unit, traits in self.shown.items()
        ]
        return {"shown": places} if places else {}

    def _show(self, dropped: Dropped) -> None:
        """Keep a row that was left out or noted for a line, if it is among the first of its cause."""
        if len(shown := self._first_dropped.setdefault(dropped.cause, [])) < DROPPED_SHOWN:
            shown.append(dropped)

    def dropped_lines(self) -> list[str]:
        """Return a line for each cause that rows were left out for: how many, and the first of them."""
        return [
            f"{many(self.counts[cause], 'row')} {_became(cause)}, such as "
            + "; ".join(f"{one.where} ({one.shown})" for one in shown)
            for cause, shown in self._first_dropped.items()
        ]

    def _keeps(self, batch: EncodedBatch, index: int, length: int) -> bool:
        if self.deduplicate:
            if batch.digests[index] in self._seen:
                self.counts["duplicates"] += 1
                return False
            self._seen.add(batch.digests[index])
        if self.near is not None and (found := self.near.find(batch.signatures[index], batch.places[index])):
            self.counts["near_duplicates"] += 1
            alike = f"{found[1]:.2f} like {found[0]}"
            self._show(Dropped("near_duplicates", alike, batch.places[index]))
            return False
        if length <= self.options.seq_len:
            return True
        if self.options.unit is not Unit.document:
            # Half of it would be another unit.
            self.counts["long_units"] += 1
            return False
        if self.options.is_stream:
            return True
        match self.options.long_documents:
            case LongDocuments.split:
                self.counts["long_split"] += 1
                self.counts["long_pieces"] += math.ceil(length / self.options.seq_len)
                self.counts["long_tokens"] += length
                return True
            case LongDocuments.drop:
                self.counts["long_dropped"] += 1
                return False
            case LongDocuments.error:
                self.counts["long_refused"] += 1
                self._first_long = self._first_long or batch.places[index]
                return False

    def _check_ids(self, batch: EncodedBatch) -> None:
        largest = int(batch.tokens.max())
        if self.vocab_size is None or largest < self.vocab_size:
            return
        at = int(batch.tokens.argmax())
        piece = int(np.searchsorted(np.cumsum(batch.lengths), at, side="right"))
        place = batch.places[int(np.searchsorted(np.cumsum(batch.unit_pieces), piece, side="right"))]
        raise DataError(
            f"`data.sources.{self.name}` must have token ids below the model's vocabulary of "
            f"{self.vocab_size}, but has the id {largest} ({place}) instead. Use the model's own "
            "tokenizer, or resize the model's embeddings."
        )

    def check(self) -> None:
        """Judge the source as a whole, after the last batch.

        Raises:
            DataError: If rows cannot be used, documents are too long, or nothing is left to learn from.
        """
        key = f"`data.sources.{self.name}`"
        num_rows = self.counts["rows"]
        if self._first_problems:
            first = [*self._first_problems.values()]
            if 0 < num_rows == self._num_alike[TEMPLATE_FAILS]:
                raise DataError(_template_to_blame(key, first[0], num_rows))
            raise DataError(problems_said(key, first, self._problems, f"{num_rows} rows"))
        if num_rows == 0:
            raise DataError(f"{key} must hold documents, but is empty. Check its files or drop it.")
        if self.counts["long_refused"]:
            raise DataError(
                f"`data.seq_len` must hold every document of {key}, but is {self.options.seq_len}, and "
                f"{self.counts['long_refused']} of {num_rows} documents are longer (the longest has "
                f"{self.longest} tokens, the first is {self._first_long}). Raise data.seq_len, or set "
                f"data.sources.{self.name}.long_documents to drop or split."
            )
        if self.spool.num_tokens == 0:
            raise DataError(
                f"{key} must have documents left after cleaning, but none of {num_rows} is: "
                f"{describe_drops(self.counts)}. {_way_out(self.name, self.counts)}"
            )
        if self.spool.num_supervised == 0:
            raise DataError(
                f"{key} must have tokens to learn from, but none of its {self.spool.num_tokens} tokens "
                "is supervised. Check its columns and loss_mask."
            )


CHECKS = "Mend the calls, or set {source}.learn.tool_calls=unchecked."
CALLS = {
    "bad_schemas": "with tools whose parameters are no JSON schema",
    "unknown_tools": "with calls of tools that they do not list",
    "no_object_calls": "with calls whose arguments are no JSON object",
    "missing_arguments": "with calls that lack a required argument",
    "bad_arguments": "with calls whose arguments break the tool's schema",
    "repeated_calls": "with calls of one id",
    "unasked_results": "with results that answer no call",
    "unanswered_calls": "with calls that nothing answers",
}
CURATED = {
    "num_words": ("of too few or too many words", "min_words, max_words"),
    "word_chars": ("of too short or too long words", "min_mean_word_chars, max_mean_word_chars"),
    "symbols": ("of too many symbols", "max_symbols_per_word"),
    "bullet_lines": ("of too many bullets", "max_bullet_lines"),
    "ellipsis_lines": ("of too many lines that end with an ellipsis", "max_ellipsis_lines"),
    "alphabetic_words": ("of too few words with a letter", "min_alphabetic_words"),
    "stop_words": ("of too few stop words", "min_stop_words"),
    "repeated_lines": ("of too many repeated lines", "max_repeated_lines"),
    "language": ("of another language", "languages"),
    "contaminated": ("that share text with an evaluation set", "against, contaminated"),
    "near_duplicates": ("that are near-duplicates of another", "near_duplicates"),
}
KEPT = {"contaminated_kept": "that share text with an evaluation set learnt all the same"}
"""What is told of rows that are kept."""
DROPS = {
    "no_completion": ("without a completion", "Check that {source}.columns.completion names the answers."),
    "no_prompt": ("without a prompt", "Check that {source}.columns.prompt names the prompts."),
    "no_answer": ("without an answer", "Check that the assistant's turns hold text, and under which key."),
    "no_question": (
        "of the assistant alone, without a question",
        "Check the roles of the turns: whoever asks must be user, human, system or tool.",
    ),
    "not_learnt": (
        "without a turn to learn",
        "Check {source}.learn, and what the rows say of their turns (train, loss, weight).",
    ),
    "equal_sides": ("whose answers are the same", "Check that {source}.columns name two answers."),
    "empty_side": ("with an empty answer", "Check which of {source}.columns name the answers."),
    "different_prompts": (
        "whose answers are to different prompts",
        "Check {source}.columns.prompt; conversations must be the same up to their last answer.",
    ),
    "tied_ranks": ("whose answers have one rank", "Give completions two different ranks."),
    "merged_prompts": (
        "whose prompt and answer cannot be told apart in tokens",
        "End the prompts of {source} where a word ends, or set {source}.as_chat=true.",
    ),
    "quoted_dropped": (
        "with special tokens that cannot be encoded as text",
        "Take the tokenizer's special tokens out of the rows' text.",
    ),
    **{cause: (why, CHECKS) for cause, why in CALLS.items()},
    "zero_weight": ("of weight 0", "Give rows a weight above 0, or take the weight out of data.values."),
    "too_short": ("too short", "Lower {source}.clean.min_chars."),
    "too_long": ("too many characters", "Raise {source}.clean.max_chars."),
    "duplicates": ("duplicates", "Set {source}.clean.deduplicate=false."),
    **{cause: (why, f"Look at {{source}}.curate: {keys}.") for cause, (why, keys) in CURATED.items()},
    "empty": ("empty", "Check the files and {source}.columns."),
    "long_units": ("longer than the sequence", "Raise data.seq_len: a row is kept or dropped whole."),
    "long_dropped": ("longer than the sequence", "Raise data.seq_len, or set {source}.long_documents=split."),
}
"""Why a document is dropped: how that is said, and what to do where it takes all of them."""


def _became(cause: str) -> str:
    """Say what rows are and what became of them."""
    return KEPT[cause] if cause in KEPT else f"{DROPS[cause][0]} left out"


def describe_drops(counts: dict[str, int] | Counter[str]) -> str:
    """Say how many documents were dropped and why; empty if none was."""
    return ", ".join(f"{counts[key]:,} {why}" for key, (why, _) in DROPS.items() if counts.get(key))


def _way_out(name: str, counts: Counter[str]) -> str:
    """Say what to do about the reason that dropped the most documents of a source."""
    most = max(DROPS, key=lambda key: counts[key])
    return DROPS[most][1].format(source=f"data.sources.{name}")


def _template_to_blame(key: str, first: RowProblem, num_rows: int) -> str:
    """Return a sentence about a chat template that fails on every row in the same way."""
    return (
        f"`model.chat_template` must render the conversations of {key}, but fails: {first.value}; so on each of "
        f"{many(num_rows, 'row')}, from {first.where}. Mend it there, or set model.chat_template to another file."
    )
