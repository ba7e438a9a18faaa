"""Pairs for the benchmarks of preferences: HH-RLHF as it is published, long pairs of real text, and a tokenizer.

Rows are {"prompt", "chosen", "rejected"}, texts. The tokenizer has a token for each word and sign of the rows, most
frequent first, so that it is the same wherever the same rows are; weights are random, so that no other is needed.
"""

from __future__ import annotations

import collections
import gzip
import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SPEAKER = "\n\nAssistant:"
"""What the last turn of an HH conversation begins with; all before and with it is the prompt."""
SPECIALS = ("<unk>", "</s>")
LONG_WORDS = (500, 1000)
"""Fewest and most words of a prompt and of each answer of a long pair, so that each side has 1,000 to 2,000."""

Row = dict[str, str]


@dataclass(slots=True)
class Pairs:
    """Rows that both trainers read, and what was left out of the file by cause."""

    rows: list[Row]
    dropped: dict[str, int] = field(default_factory=dict)


def hh_pairs(path: Path) -> Pairs:
    """Read HH conversations, splitting each at the last thing that the assistant says.

    Raises:
        SystemExit: The file has other columns.
    """
    dropped: collections.Counter[str] = collections.Counter()
    rows: list[Row] = []
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            row = json.loads(line)
            if not {"chosen", "rejected"} <= row.keys():
                raise SystemExit(f"{path}: row {number} must have chosen and rejected, but has {sorted(row)}")
            cut = row["chosen"].rfind(SPEAKER) + len(SPEAKER)
            prompt, chosen = row["chosen"][:cut], row["chosen"][cut:]
            rejected = row["rejected"][cut:]
            if row["rejected"][:cut] != prompt:
                dropped["different prompts"] += 1
            elif not chosen.strip() or not rejected.strip():
                dropped["empty answers"] += 1
            elif chosen.split() == rejected.split():
                dropped["equal answers"] += 1
            else:
                rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return Pairs(rows, dict(dropped))


def long_pairs(text: str, num: int, seed: int) -> Pairs:
    """Cut pairs out of a text: a prompt with the answer that follows it, and one from elsewhere.

    Raises:
        SystemExit: The text is shorter than one pair.
    """
    words, rng = text.split(), random.Random(seed)
    most = 2 * LONG_WORDS[1]
    if len(words) <= most:
        raise SystemExit(f"the text of long pairs must have more than {most} words, but has {len(words)}")
    rows = []
    for _ in range(num):
        of_prompt, of_chosen, of_rejected = (rng.randint(*LONG_WORDS) for _ in range(3))
        start, other = (rng.randrange(len(words) - most) for _ in range(2))
        middle = start + of_prompt
        rows.append(
            {
                "prompt": " ".join(words[start:middle]),
                "chosen": " " + " ".join(words[middle : middle + of_chosen]),
                "rejected": " " + " ".join(words[other : other + of_rejected]),
            }
        )
    return Pairs(rows)


def some(pairs: Pairs, num: int, seed: int) -> Pairs:
    """Return so many rows, in an order of the seed; counts what is left."""
    rows = list(pairs.rows)
    random.Random(seed).shuffle(rows)
    if len(rows) < num:
        raise SystemExit(f"{num} pairs are asked for, but there are {len(rows)}")
    return Pairs(rows[:num], pairs.dropped | {"not asked for": len(rows) - num})


def write_rows(rows: list[Row], path: Path) -> None:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_rows(path: Path) -> list[Row]:
    """Read what `write_rows` wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def word_tokenizer(rows: list[Row], most: int) -> Any:
    """Return a tokenizer of transformers with at most so many tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Whitespace()
    words = collections.Counter(
        word for row in rows for text in row.values() for word, _ in split.pre_tokenize_str(text)
    )
    ordered = sorted(words, key=lambda word: (-words[word], word))[: most - len(SPECIALS)]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*SPECIALS, *ordered]))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = split
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", eos_token="</s>", pad_token="</s>"
    )


def mean_lengths(rows: list[Row], tokenizer: Any) -> dict[str, float]:
    """Return the mean tokens of each part of a row; answers with the token that ends them."""
    found = {key: [len(ids) for ids in tokenizer([row[key] for row in rows])["input_ids"]] for key in rows[0]}
    return {key: sum(n) / len(n) + (key != "prompt") for key, n in found.items()}


def pair_tokens(lengths: dict[str, float], is_shared: bool = False) -> float:
    """Return the mean tokens of a pair: the prompt with each answer, or once with both."""
    return (1 if is_shared else 2) * lengths["prompt"] + lengths["chosen"] + lengths["rejected"]
