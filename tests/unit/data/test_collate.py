"""Collation: labels stay inside documents, padding is nobody's neighbour, shapes never change."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.pack.collate import IGNORE, collate
from trainer.data.types import Pack


def pack_of(lengths, first=10, supervised=None):
    total = sum(lengths)
    marks = np.ones(total, dtype=bool) if supervised is None else np.array(supervised, dtype=bool)
    return Pack(np.arange(first, first + total, dtype=np.int64), marks, list(lengths))


def test_labels_are_the_next_token_of_the_same_document():
    micro = collate([pack_of([3, 2])], [0], 7, pad_id=5)
    assert micro.tokens_BT.tolist() == [[10, 11, 12, 13, 14, 5, 5]]
    assert micro.labels_BT.tolist() == [[11, 12, IGNORE, 14, IGNORE, IGNORE, IGNORE]]
    assert micro.positions_BT.tolist() == [[0, 1, 2, 0, 1, 0, 1]]
    assert micro.segments_BT.tolist() == [[0, 0, 0, 1, 1, 2, 2]]
    assert micro.cu_seq_lens.tolist() == [0, 3, 5, 7]
    assert micro.num_targets == 3 and micro.num_tokens == 5 and micro.sum_len_sq == 9 + 4


def test_a_label_counts_only_where_the_predicted_token_is_supervised():
    micro = collate([pack_of([4], supervised=[1, 0, 1, 0])], [0], 4, 0)
    assert micro.labels_BT.tolist() == [[IGNORE, 12, IGNORE, IGNORE]]
    assert micro.num_targets_B == [1]


def test_rows_are_separate_and_remember_their_source():
    micro = collate([pack_of([4]), pack_of([2, 1], first=50)], [3, 1], 4, 0)
    assert micro.segments_BT.tolist() == [[0, 0, 0, 0], [1, 1, 2, 3]]
    assert micro.cu_seq_lens.tolist() == [0, 4, 6, 7, 8]
    assert micro.source_B == [3, 1] and micro.num_targets_B == [3, 1]


def test_flash_attention_gets_int32_boundaries_and_a_python_maximum():
    micro = collate([pack_of([3, 2])], [0], 7, 0)
    assert micro.cu_seq_lens.dtype == np.int32
    assert type(micro.max_seq_len) is int and micro.max_seq_len == 3
    for array in (micro.tokens_BT, micro.labels_BT, micro.positions_BT, micro.segments_BT):
        assert array.dtype == np.int64


@st.composite
def packs(draw):
    seq_len = draw(st.integers(8, 40))
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        lengths, room = [], seq_len
        while room and (not lengths or draw(st.booleans())):
            lengths.append(draw(st.integers(1, room)))
            room -= lengths[-1]
        total = sum(lengths)
        marks = draw(st.lists(st.booleans(), min_size=total, max_size=total))
        rows.append(pack_of(lengths, draw(st.integers(1, 99)), marks))
    return seq_len, rows


@given(packs())
def test_collation_keeps_its_promises_for_any_packs(case):
    seq_len, rows = case
    micro = collate(rows, list(range(len(rows))), seq_len, pad_id=7)
    assert micro.tokens_BT.shape == micro.labels_BT.shape == (len(rows), seq_len)
    boundaries = micro.cu_seq_lens.tolist()
    assert boundaries[0] == 0 and boundaries[-1] == len(rows) * seq_len
    lengths = np.diff(boundaries)
    assert (lengths > 0).all() and micro.max_seq_len == lengths.max()
    flat_segments = micro.segments_BT.reshape(-1)
    assert flat_segments.tolist() == np.repeat(np.arange(len(lengths)), lengths).tolist()
    flat_positions = micro.positions_BT.reshape(-1)
    assert flat_positions.tolist() == [i for length in lengths for i in range(length)]
    labels, tokens = micro.labels_BT.reshape(-1), micro.tokens_BT.reshape(-1)
    for index in np.flatnonzero(labels != IGNORE):
        assert flat_segments[index] == flat_segments[index + 1]
        assert labels[index] == tokens[index + 1]
    expected = sum(
        int(pack.supervised[sum(pack.lengths[:d]) + 1 : sum(pack.lengths[: d + 1])].sum())
        for pack in rows
        for d in range(len(pack.lengths))
    )
    assert micro.num_targets == expected == int((labels != IGNORE).sum())
