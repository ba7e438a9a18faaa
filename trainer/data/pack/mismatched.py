"""Answers put behind the prompts of others, pack by pack: what KTO measures its point of reference on.

The answers of a pack change places in a circle, so that its prompts and answers have as many tokens as before and what
fitted a sequence still does. The pack alone decides who gets whose answer: no micro-batch, rank or step does.
"""

from __future__ import annotations

import numpy as np

from trainer.data.store.store import SplitStore
from trainer.data.types import Bools, Int64s, Pack


class MismatchedSplit(SplitStore):
    """A split of answers with labels in which each prompt of a pack stands before the answer of the one before."""

    def __init__(self, store: SplitStore) -> None:
        """Take the split, which stays as it is."""
        vars(self).update(vars(store))

    def pack(self, index: int) -> Pack:
        """Return a pack by its number; raises as SplitStore.pack does."""
        return mismatched(super().pack(index))

    def is_strange(self, index: int) -> Bools:
        """Tell of each piece of a pack whether its answer was given to another prompt."""
        return is_strange(super().pack(index))

    def prompts(self, index: int) -> set[bytes]:
        """Return the different prompts of a pack, each as the bytes of its tokens."""
        return set(prompts_of(super().pack(index)))


def mismatched(pack: Pack) -> Pack:
    """Return a pack whose pieces have their own prompts and the answers of those before, the first that of the last.

    Numbers of tokens go with them. Source: trl 1.16, which does it with the rows of a micro-batch.
    """
    asked, answered = _parts(pack)
    order = [
        part
        for prompt, answer in zip(asked, answered[-1:] + answered[:-1], strict=True)
        for part in (prompt, answer)
    ]
    at = np.concatenate([np.empty(0, dtype=np.int64), *order])
    lengths = [len(order[place]) + len(order[place + 1]) for place in range(0, len(order), 2)]
    values = {name: numbers[at] for name, numbers in pack.values.items()}
    return Pack(pack.tokens[at], pack.supervised[at], lengths, pack.unit_pieces, values)


def is_strange(pack: Pack) -> Bools:
    """Tell of each piece whether the one before has another prompt; a pack of one piece has none that does."""
    prompts = prompts_of(pack)
    return np.array(
        [one != other for one, other in zip(prompts, prompts[-1:] + prompts[:-1], strict=True)], dtype=bool
    )


def prompts_of(pack: Pack) -> list[bytes]:
    """Return each piece's prompt, as the bytes of its tokens."""
    return [pack.tokens[part].tobytes() for part in _parts(pack)[0]]


def _parts(pack: Pack) -> tuple[list[Int64s], list[Int64s]]:
    """Return the places of each piece's prompt and of what follows it, from its first learnt token on."""
    asked, answered = [], []
    start = 0
    for length in pack.lengths:
        begin = start + int(pack.supervised[start : start + length].argmax())
        asked.append(np.arange(start, begin))
        answered.append(np.arange(begin, start + length))
        start += length
    return asked, answered
