from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.pack import pack
from trainer.data.pack.pack import (
    Layout,
    as_rows,
    best_fit,
    concat,
    cut_long,
    pack_targets,
    positions_of_rows,
)

SEQ_LEN = 16
LENGTHS = st.lists(st.integers(1, 50), max_size=60)
SHORT = st.lists(st.integers(1, SEQ_LEN), max_size=60)


def token_order(layout: Layout) -> list[int]:
    pieces = zip(layout.piece_start.tolist(), layout.piece_len.tolist(), strict=True)
    return [t for start, length in pieces for t in range(start, start + length)]


def check_layout(layout: Layout, total: int) -> None:
    assert sorted(token_order(layout)) == list(range(total))
    assert layout.pack_offset[0] == 0 and layout.pack_offset[-1] == len(layout.piece_len)
    sizes = np.array([layout.piece_len[a:b].sum() for a, b in pack_ranges(layout)])
    assert (sizes <= SEQ_LEN).all() and (sizes > 0).all()


def pack_ranges(layout: Layout) -> list[tuple[int, int]]:
    offsets = layout.pack_offset.tolist()
    return list(pairwise(offsets))


@given(LENGTHS)
def test_concat_keeps_every_token_once_in_order_and_fills_all_packs_but_the_last(
    lengths: list[int],
) -> None:
    layout = concat(np.array(lengths, dtype=np.int32), SEQ_LEN)
    check_layout(layout, sum(lengths))
    assert token_order(layout) == list(range(sum(lengths)))
    sizes = [int(layout.piece_len[a:b].sum()) for a, b in pack_ranges(layout)]
    assert all(size == SEQ_LEN for size in sizes[:-1])


@given(LENGTHS)
def test_concat_never_joins_two_documents_in_one_piece(lengths: list[int]) -> None:
    layout = concat(np.array(lengths, dtype=np.int32), SEQ_LEN)
    document = np.repeat(np.arange(len(lengths)), lengths)
    for start, length in zip(layout.piece_start, layout.piece_len, strict=True):
        assert len(set(document[start : start + length].tolist())) == 1


@given(SHORT)
def test_best_fit_keeps_every_document_whole_and_exactly_once(lengths: list[int]) -> None:
    layout = best_fit(np.array(lengths, dtype=np.int32), SEQ_LEN)
    check_layout(layout, sum(lengths))
    starts = np.cumsum([0, *lengths])[:-1]
    assert sorted(layout.piece_start.tolist()) == starts.tolist()


@given(SHORT)
def test_best_fit_needs_at_most_a_quarter_more_packs_than_the_tokens_fill(
    lengths: list[int],
) -> None:
    """Best-fit decreasing is within 11/9 of the best packing plus one; here the bound is on tokens."""
    layout = best_fit(np.array(lengths, dtype=np.int32), SEQ_LEN)
    big = sum(length > SEQ_LEN // 2 for length in lengths)
    least = max(-(-sum(lengths) // SEQ_LEN), big)
    assert layout.num_packs <= 1.5 * least + 1


@given(SHORT)
def test_best_fit_packs_are_ordered_by_their_first_document(lengths: list[int]) -> None:
    layout = best_fit(np.array(lengths, dtype=np.int32), SEQ_LEN)
    firsts = [layout.piece_start[a] for a, _ in pack_ranges(layout)]
    assert firsts == sorted(firsts)
    assert all((np.diff(layout.piece_start[a:b]) > 0).all() for a, b in pack_ranges(layout))


@given(SHORT)
def test_rows_keep_every_document_whole_and_exactly_once_and_fit_the_space(lengths: list[int]) -> None:
    layout = as_rows(np.array(lengths, dtype=np.int32), SEQ_LEN)
    check_layout(layout, sum(lengths))
    starts = np.cumsum([0, *lengths])[:-1]
    assert sorted(layout.piece_start.tolist()) == starts.tolist()
    positions = positions_of_rows(layout, SEQ_LEN)
    for computed, (first, last) in zip(positions.tolist(), pack_ranges(layout), strict=True):
        pieces = layout.piece_len[first:last]
        width = min(-(-int(pieces.max()) // 8) * 8, SEQ_LEN)
        assert computed == width * len(pieces) <= SEQ_LEN
        assert (np.diff(layout.piece_start[first:last]) > 0).all()
    firsts = [layout.piece_start[first] for first, _ in pack_ranges(layout)]
    assert firsts == sorted(firsts)


def test_rows_of_a_pack_are_of_about_one_length() -> None:
    """By hand: rows of 16 hold one document each, those of at most 8 tokens stand two beside each other."""
    layout = as_rows(np.array([3, 16, 8, 9, 5], dtype=np.int32), SEQ_LEN)
    assert [layout.piece_len[a:b].tolist() for a, b in pack_ranges(layout)] == [[3], [16], [8, 5], [9]]
    assert positions_of_rows(layout, SEQ_LEN).tolist() == [8, 16, 16, 16]


def test_little_of_rows_of_mixed_lengths_is_padding() -> None:
    lengths = np.random.default_rng(0).integers(8, 2049, 5000).astype(np.int32)
    computed = int(positions_of_rows(as_rows(lengths, 2048), 2048).sum(dtype=np.int64))
    assert 0.98 < lengths.sum(dtype=np.int64) / computed <= 1


@given(LENGTHS)
def test_cut_documents_keep_their_tokens_and_no_piece_is_too_long(lengths: list[int]) -> None:
    pieces = cut_long(np.array(lengths, dtype=np.int32), SEQ_LEN)
    assert len(pieces) == 0 or pieces.max() <= SEQ_LEN
    ends = set(np.cumsum(pieces).tolist())
    assert set(np.cumsum(lengths).tolist()) <= ends
    assert sum(pieces) == sum(lengths)


@given(SHORT, st.randoms(use_true_random=False), st.integers(1, 40))
def test_targets_are_the_supervised_tokens_that_begin_no_piece(
    lengths: list[int], random: object, block: int
) -> None:
    total = sum(lengths)
    marks = np.array([random.randint(0, 1) for _ in range(total)], dtype=np.uint8)  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "BLOCK_TOKENS", block)
        for layout in (
            best_fit(np.array(lengths, dtype=np.int32), SEQ_LEN),
            concat(np.array(lengths), SEQ_LEN),
        ):
            expected = []
            for first, last in pack_ranges(layout):
                pieces = zip(layout.piece_start[first:last], layout.piece_len[first:last], strict=True)
                expected.append(sum(int(marks[s + 1 : s + n].sum()) for s, n in pieces))
            assert pack_targets(layout, marks).tolist() == expected
            ones = pack_targets(layout, np.ones(total, dtype=np.uint8))
            assert ones.tolist() == pack_targets(layout, None).tolist()


def test_no_documents_make_no_packs() -> None:
    empty = np.empty(0, dtype=np.int32)
    for layout in (concat(empty, SEQ_LEN), best_fit(empty, SEQ_LEN)):
        assert layout.num_packs == 0 and pack_targets(layout, None).tolist() == []


@pytest.mark.parametrize("low", [1, 90])
def test_best_fit_wastes_less_than_a_hundredth_of_many_mixed_documents(low: int) -> None:
    lengths = np.random.default_rng(0).integers(low, 900, 10_000).astype(np.int32)
    layout = best_fit(lengths, 2048)
    assert lengths.sum() / (layout.num_packs * 2048) > 0.99


@given(SHORT)
def test_the_careful_packing_also_keeps_every_document_once_within_the_space(
    lengths: list[int],
) -> None:
    array = np.array(lengths, dtype=np.int32)
    pack_of = pack._assign_in_turn(array, SEQ_LEN)
    sizes = np.bincount(pack_of, weights=array) if lengths else np.empty(0)
    assert len(pack_of) == len(lengths) and (sizes <= SEQ_LEN).all() and (sizes > 0).all()
