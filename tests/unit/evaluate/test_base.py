"""The base model's evaluation in a file."""

import numpy as np
import pytest

from trainer.errors import DataError
from trainer.evaluate.base import BaseEvaluation, DamagedBase, read_base, write_base
from trainer.evaluate.held_out import PieceLosses
from trainer.evaluate.kl import Reference

BASE = BaseEvaluation(
    "a" * 64,
    {
        "x|y": PieceLosses(np.array([1.5, 2.0]), np.array([3, 4])),
        "z": PieceLosses(np.array([1.0]), np.array([1])),
    },
    {
        ("x|y", 7): Reference(
            np.arange(4, dtype=np.int32).reshape(2, 2),
            np.ones((2, 2), np.float32),
            np.array([0, 1], np.int32),
        )
    },
    {("x|y", 7): np.array([0.5, 1.0], np.float16)},
)


def test_an_evaluation_makes_a_round_trip(tmp_path):
    """Names of sources may hold the character that parts of an entry are joined with."""
    path = tmp_path / "new" / "base.npz"
    write_base(path, BASE)
    read = read_base(path, BASE.key)
    assert list(read.pieces) == ["x|y", "z"] and read.pieces["x|y"].mean == pytest.approx(0.5)
    reference = read.references[("x|y", 7)]
    assert reference.ids_QK.tolist() == [[0, 1], [2, 3]] and reference.piece_Q.tolist() == [0, 1]
    assert [*read.tokens] == [("x|y", 7)] and read.tokens["x|y", 7].tolist() == [0.5, 1.0]
    assert [path.name for path in path.parent.iterdir()] == ["base.npz"]


def test_an_evaluation_of_another_base_is_refused(tmp_path):
    write_base(tmp_path / "base.npz", BASE)
    with pytest.raises(DataError, match="must hold the evaluation of this run's base model"):
        read_base(tmp_path / "base.npz", "b" * 64)


def test_a_damaged_evaluation_is_refused_with_its_path(tmp_path):
    path = tmp_path / "base.npz"
    write_base(path, BASE)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=r"base\.npz must be readable, but is damaged"):
        read_base(path, BASE.key)


def test_one_flipped_bit_anywhere_in_an_evaluation_is_found(tmp_path):
    path = tmp_path / "base.npz"
    write_base(path, BASE)
    whole = path.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 8
        path.write_bytes(changed)
        with pytest.raises(DamagedBase, match=r"base\.npz must be readable, but is damaged.*Delete it"):
            read_base(path, BASE.key)
