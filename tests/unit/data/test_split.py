from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.rows.clean import content_digest
from trainer.data.store.held_back import choose_validation, split_hash
from trainer.data.types import TextDocument

DIGESTS = [content_digest(TextDocument(f"document {i}")) for i in range(2000)]


def held_out(digests: list[bytes], frac: float) -> set[bytes]:
    chosen = choose_validation(hashes_of(digests), frac).tolist()
    return {digest for digest, is_chosen in zip(digests, chosen, strict=True) if is_chosen}


def hashes_of(digests: list[bytes]) -> np.ndarray:
    return np.array([split_hash(digest) for digest in digests], dtype=np.uint64)


def test_about_the_asked_share_is_held_out() -> None:
    share = len(held_out(DIGESTS, 0.1)) / len(DIGESTS)
    assert 0.08 < share < 0.12


def test_a_larger_share_holds_out_all_documents_of_a_smaller_one() -> None:
    small = held_out(DIGESTS, 0.02)
    assert small and small <= held_out(DIGESTS, 0.05)


def test_documents_stay_on_their_side_when_others_come_or_the_order_changes() -> None:
    few, many = DIGESTS[:1000], list(reversed(DIGESTS))
    after = held_out(many, 0.1)
    assert held_out(few, 0.1) == after & set(few)
    assert after == {digest for digest in many if split_hash(digest) < 2**64 // 10}


@given(st.integers(2, 5), st.sampled_from([1e-6, 0.02, 0.5]), st.integers(0, 1900))
def test_no_side_of_two_different_documents_is_ever_empty(count: int, frac: float, first: int) -> None:
    chosen = choose_validation(hashes_of(DIGESTS[first : first + count]), frac)
    assert chosen.any() and not chosen.all()


def test_copies_of_one_document_are_all_training() -> None:
    assert not choose_validation(hashes_of([DIGESTS[0]] * 3), 0.5).any()


def test_a_share_of_zero_holds_nothing_out() -> None:
    assert not choose_validation(hashes_of(DIGESTS), 0.0).any()
    assert choose_validation(hashes_of([]), 0.5).shape == (0,)


def test_a_share_of_one_holds_out_everything():
    hashes = np.array([1, 2**63, 2**64 - 1], dtype=np.uint64)
    assert choose_validation(hashes, 1.0).all()
    assert choose_validation(hashes[:1], 1.0).all()
