"""Answers of a pack behind the prompts of others: nothing is lost, and the pack alone decides."""

import numpy as np

from trainer.data.pack.mismatched import is_strange, mismatched
from trainer.data.types import Pack


def pack_of(*pieces):
    """Return a pack of (prompt, answer)."""
    tokens = np.array([token for piece in pieces for part in piece for token in part])
    marks = np.array([index for piece in pieces for index, part in enumerate(piece) for _ in part])
    values = {"label": marks * 1.0 * tokens}
    return Pack(tokens, marks.astype(bool), [len(a) + len(b) for a, b in pieces], [1] * len(pieces), values)


PACK = pack_of(([1, 2], [11, 12, 13]), ([3], [21]), ([4, 5, 6], [31, 32]))


def test_a_prompt_stands_before_the_answer_of_the_one_before_as_in_trl():
    found = mismatched(PACK)
    assert found.tokens.tolist() == [1, 2, 31, 32, 3, 11, 12, 13, 4, 5, 6, 21]
    assert found.lengths == [4, 4, 4] and found.unit_pieces == [1, 1, 1]
    assert found.supervised.tolist() == [token > 10 for token in found.tokens]
    assert found.values["label"].tolist() == [token * (token > 10) for token in found.tokens]
    assert is_strange(PACK).tolist() == [True, True, True]


def test_an_answer_to_the_same_prompt_is_not_strange():
    pack = pack_of(([1, 2], [11]), ([1, 2], [12]), ([3], [13]))
    assert is_strange(pack).tolist() == [True, False, True]
    assert is_strange(pack_of(([1], [11]))).tolist() == [False]
    assert mismatched(pack_of(([1], [11]))).tokens.tolist() == [1, 11]
