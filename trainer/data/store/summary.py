"""Shows what `prepare` made: a table of all sources, and samples with the supervised tokens marked."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainer.config.data import TokenValue
from trainer.config.many import many
from trainer.data.chat.notes import describe_chats
from trainer.data.store.intake import describe_drops
from trainer.data.store.store import TRAIN, VALIDATION, SplitStore, Store
from trainer.data.types import Pack, TokenizerLike, Unit
from trainer.runtime.say import say
from trainer.runtime.visible import visible

SAMPLE_TOKENS = 400
UNITS = {Unit.pair: "pairs", Unit.answer: "answers"}
"""What units are called where they are no documents."""
OPEN, CLOSE = "\u27e6", "\u27e7"


def fill_frac(split: dict[str, Any]) -> float:
    """Return the share of a split's pack positions that hold tokens; 0 without packs."""
    capacity = split["num_packs"] * split["seq_len"]
    return float(split["num_tokens"] / capacity) if capacity else 0.0


def build_table(stores: dict[str, Store]) -> Table:
    """Build the table of all sources: a column a source, so that it fits 80 columns."""
    table = Table(title="Prepared sources", title_justify="left")
    table.add_column("")
    described = [describe_store(store) for store in stores.values()]
    for name in stores:
        table.add_column(name, justify="right", overflow="fold")
    units = ", ".join(dict.fromkeys(UNITS.get(store.train.unit, "documents") for store in stores.values()))
    for label in described[0] if described else ():
        table.add_row(units if label == "documents" else label, *(cells[label] for cells in described))
    return table


def describe_store(store: Store) -> dict[str, str]:
    """Return the cells of a store: counts over both splits, fill of the training split if it has any."""
    train, held_out = store.meta["splits"][TRAIN], store.meta["splits"][VALIDATION]
    both = {key: train[key] + held_out[key] for key in train if key.startswith("num_")}
    share = both["num_supervised"] / max(both["num_tokens"], 1)
    return {
        "documents": f"{both['num_documents']:,}"
        + (f" ({held_out['num_documents']:,} held out)" if held_out["num_documents"] else ""),
        "tokens": f"{both['num_tokens']:,}",
        "supervised tokens": f"{both['num_supervised']:,} ({share:.0%})",
        "fill of packs": f"{fill_frac(train if train['num_packs'] else held_out):.2%}",
        **_describe_rows(store),
        **_describe_values(store),
        "longest document": f"{store.meta['longest']:,} tokens",
        "training packs": _describe_split(train),
        "held-out packs": _describe_split(held_out),
        "dropped, and other counts": describe_notes(store.meta),
    }


def _describe_split(split: dict[str, Any]) -> str:
    if not split["num_packs"]:
        return "0"
    return f"{split['num_packs']:,} ({many(split['num_tokens'], 'token')})"


def _describe_rows(store: Store) -> dict[str, str]:
    """Return what of the rows is padding, where every document is a row of its own."""
    split = store.train if store.train.num_packs else store.validation
    if not split.in_rows:
        return {}
    return {"padding of rows": f"{1 - split.num_tokens / max(int(split.pack_positions.sum()), 1):.2%}"}


def _describe_values(store: Store) -> dict[str, str]:
    """Return a cell for each number of tokens: its sum over all targets, and its mean.

    Labels are left out: they tell answers apart, and answers of each kind are counted where there are labels.
    """
    splits = (store.train, store.validation)
    num_targets = sum(split.num_targets for split in splits)
    cells = {}
    for name in store.train.values:
        if name == TokenValue.label.value:
            continue
        total = sum(float(split.pack_value_sums[name].sum()) for split in splits)
        cells[f"{name} of targets"] = f"{total:,.1f} (mean {total / max(num_targets, 1):.3g})"
    return cells


def describe_shared(store: Store) -> list[str]:
    """Say in a line how many tokens of prompts packs hold once in place of twice; none where none are shared."""
    num_shared = store.train.num_shared + store.validation.num_shared
    if not num_shared:
        return []
    num_tokens = store.train.num_tokens + store.validation.num_tokens
    fewer = (num_tokens + num_shared) / num_tokens
    return [
        f"{many(num_shared, 'token')} of prompts {'is' if num_shared == 1 else 'are'} shared (x{fewer:.2f} fewer)"
    ]


def describe_notes(meta: dict[str, Any]) -> str:
    """Say what was dropped, changed or held out in an unusual way; `-` if nothing was."""
    counts = meta["counts"]
    changed = [
        f"{counts[key]:,} {key.replace('_', ' ')}"
        for key in ("normalized", "stripped", "null_turns", "padding_ids", "empty_prompts")
        if counts.get(key)
    ]
    notes = [
        describe_drops(counts),
        *changed,
        _describe_cuts(counts),
        *describe_chats(counts),
        meta.get("split_note", ""),
    ]
    return "; ".join(note for note in notes if note) or "-"


def _describe_cuts(counts: dict[str, int]) -> str:
    """Say how many documents are longer than a pack and how they were cut; empty if none was."""
    if not counts.get("long_split"):
        return ""
    into = (
        f" cut into {many(counts['long_pieces'], 'piece')} of {counts['long_tokens']:,} tokens together"
        if "long_pieces" in counts
        else " cut"
    )
    return f"{many(counts['long_split'], 'document')} longer than a pack{into}, all kept"


def print_report(
    stores: dict[str, Store], notes: dict[str, list[str]], tokenizer: TokenizerLike, console: Console
) -> None:
    """Print the table, the notes and a few samples of every source."""
    console.print(build_table(stores))
    for name, lines in notes.items():
        for line in [*lines, *describe_shared(stores[name])]:
            say(console, f"{name}: {line}.")
    for name, store in stores.items():
        for number, (said, samples) in enumerate(choose_samples(store), 1):
            for what, sample in samples.items():
                console.rule(f"{name}, sample {number}{what}{said}", align="left")
                console.print(render_sample(sample, tokenizer, console.is_terminal), soft_wrap=True)


def choose_samples(store: Store) -> list[tuple[str, dict[str, Pack]]]:
    """Return the first, a middle and the last unit, and one with each thing that not every row has, said in words.

    A unit is shown as its piece; a pair as its prompt with the chosen answer, and the rejected answer alone.
    """
    splits = {TRAIN: store.train, VALIDATION: store.validation}
    usual = TRAIN if store.train.num_pieces else VALIDATION
    per_unit = 2 if store.train.unit is Unit.pair else 1
    last = splits[usual].num_pieces // per_unit - 1
    chosen = {(usual, per_unit * index): "" for index in sorted({0, last // 2, last}) if index >= 0}
    for one in store.meta.get("shown", ()):
        index = splits[one["split"]].piece_at(one["start"])
        if index is not None:
            chosen[one["split"], index] = f": a row with {' and '.join(one['traits'])}"
    return [(said, _pieces_shown(splits[split], index)) for (split, index), said in chosen.items()]


def _pieces_shown(split: SplitStore, index: int) -> dict[str, Pack]:
    first = split.piece(index)
    if split.unit is not Unit.pair:
        return {"": first}
    second = split.piece(index + 1)
    answer = slice(int(second.supervised.argmax()), None)
    alone = Pack(second.tokens[answer], second.supervised[answer], [len(second.tokens[answer])])
    return {", prompt and chosen": first, ", rejected": alone}


def render_sample(piece: Pack, tokenizer: TokenizerLike, in_colour: bool) -> Text:
    """Show a piece with its supervised tokens in colour, or in marks where there is no colour."""
    text = Text()
    left_out = len(piece.tokens) - SAMPLE_TOKENS
    if left_out <= 0:
        _append_runs(text, piece, slice(None), tokenizer, in_colour)
        return text
    # Both ends: prompts stand at the beginning, what is learnt from them at the end.
    _append_runs(text, piece, slice(SAMPLE_TOKENS // 2), tokenizer, in_colour)
    text.append(f" ... {left_out:,} tokens ... ", style="dim italic")
    _append_runs(text, piece, slice(-SAMPLE_TOKENS // 2, None), tokenizer, in_colour)
    return text


def _append_runs(text: Text, piece: Pack, part: slice, tokenizer: TokenizerLike, in_colour: bool) -> None:
    pairs = zip(piece.tokens[part].tolist(), piece.supervised[part].tolist(), strict=True)
    for supervised, run in groupby(pairs, key=lambda pair: pair[1]):
        words = visible(tokenizer.decode([token for token, _ in run]))
        if supervised and not in_colour:
            words = f"{OPEN}{words}{CLOSE}"
        text.append(words, style="green" if supervised else "dim")
