"""Pairs whose packs hold their prompt once: what is left out, and that nothing that is learnt is."""

from __future__ import annotations

import io
import json
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tests.helpers.tokenizers import make_tokenizer
from trainer.config.data import DataConfig, Format, SourceConfig
from trainer.data.pack.collate import IGNORE, collate
from trainer.data.pack.pack import best_fit
from trainer.data.pack.refs import FILLER, PackRef, read_batch
from trainer.data.pack.shared import shared_prefixes
from trainer.data.prepare import prepare
from trainer.data.store.counted_pairs import shared_counts
from trainer.data.store.pack_arrays import digest_of_pack
from trainer.data.store.store import SplitStore, Store
from trainer.data.types import EncodedBatch, Pack, Unit
from trainer.errors import DataError

CHAT = make_tokenizer()
ROWS = [
    {"prompt": f"Question {n}, {'so ' * (n % 5)}what?", "chosen": "Yes. " * (n % 4 + 1), "rejected": "No."}
    for n in range(20)
]


def batch_of(units: list[list[tuple[list[int], list[int]]]]) -> EncodedBatch:
    """Return units of pieces, each its tokens and marks."""
    pieces = [piece for unit in units for piece in unit]
    return EncodedBatch(
        tokens=np.array([token for tokens, _ in pieces for token in tokens], dtype=np.uint32),
        supervised=np.array([mark for _, marks in pieces for mark in marks], dtype=np.uint8),
        lengths=np.array([len(tokens) for tokens, _ in pieces], dtype=np.int32),
        unit_pieces=np.array([len(unit) for unit in units], dtype=np.int32),
        digests=[b"%d" % index for index in range(len(units))],
        places=[str(index) for index in range(len(units))],
    )


@pytest.mark.parametrize(
    ("unit", "prefixes"),
    [
        # Three tokens of the prompt: the last one stays.
        ([([5, 6, 7, 8], [0, 0, 0, 1]), ([5, 6, 7, 9, 9], [0, 0, 0, 1, 1])], [0, 2]),
        # What begins alike but is learnt is no prompt, in one or in the other.
        ([([5, 6, 7, 8], [0, 0, 1, 1]), ([5, 6, 7, 9], [0, 0, 1, 1])], [0, 1]),
        ([([5, 6, 7, 8], [0, 0, 1, 1]), ([5, 6, 7, 9], [0, 0, 0, 1])], [0, 1]),
        ([([5, 6, 7, 8], [0, 0, 0, 1]), ([5, 6, 7, 9], [0, 0, 1, 1])], [0, 1]),
        # Prompts that differ.
        ([([5, 6, 7, 8], [0, 0, 0, 1]), ([5, 4, 7, 9], [0, 0, 0, 1])], [0, 0]),
        ([([4, 6, 7, 8], [0, 0, 0, 1]), ([5, 6, 7, 9], [0, 0, 0, 1])], [0, 0]),
        # A prompt of one token, and none.
        ([([5, 8], [0, 1]), ([5, 9], [0, 1])], [0, 0]),
        ([([8, 8], [1, 1]), ([8, 9], [1, 1])], [0, 0]),
        # The first is at its end where the second goes on; three answers.
        ([([5, 6], [0, 0]), ([5, 6, 6, 9], [0, 0, 0, 1]), ([5, 6, 7, 9], [0, 0, 0, 1])], [0, 1, 1]),
    ],
)
def test_what_answers_share_is_equal_and_not_learnt_and_its_last_token_stays(unit, prefixes):
    assert shared_prefixes(batch_of([unit])).tolist() == prefixes
    other = [([5, 6, 7, 8], [0, 0, 0, 1]), ([5, 6, 7, 9], [0, 0, 0, 1])]
    assert shared_prefixes(batch_of([other, unit, other])).tolist() == [0, 2, *prefixes, 0, 2]
    assert shared_prefixes(batch_of([])).tolist() == []


def test_a_layout_points_behind_what_is_shared():
    """Pairs of 5 + 4 and 3 + 3 tokens, of which the second pieces share 2 and 1: 7 and 5 fit a pack of 12."""
    lengths, pieces = np.array([5, 4, 3, 3], dtype=np.int32), np.array([2, 2], dtype=np.int32)
    layout = best_fit(lengths, 12, pieces, np.array([0, 2, 0, 1], dtype=np.int32))
    assert layout.num_packs == 1 and best_fit(lengths, 12, pieces).num_packs == 2
    assert layout.piece_start.tolist() == [0, 7, 9, 13]
    assert layout.piece_len.tolist() == [5, 2, 3, 2]
    assert layout.piece_prefix is not None and layout.piece_prefix.tolist() == [0, 2, 0, 1]


def test_a_branch_goes_on_behind_its_prefix():
    """A prompt of 3, answers of 2 and 1; then a document of 2 and padding."""
    tokens = np.array([5, 6, 7, 1, 2, 7, 3, 8, 9])
    learnt = np.array([0, 0, 0, 1, 1, 0, 1, 1, 1], dtype=bool)
    micro = collate([Pack(tokens, learnt, [5, 2, 2], [2, 1], {}, [0, 2, 0])], [0], 10, 0)
    assert micro.positions_BT.tolist() == [[0, 1, 2, 3, 4, 2, 3, 0, 1, 0]]
    assert micro.labels_BT.tolist() == [[IGNORE, IGNORE, 1, 2, IGNORE, 3, IGNORE, 9, IGNORE, IGNORE]]
    assert micro.prefixes_S.tolist() == [0, 2, 0, 0] and micro.firsts_S.tolist() == [0, 0, 2, 3]
    assert micro.units_S.tolist() == [0, 0, 1, -1] and micro.shares_prompts
    assert micro.sum_len_sq == 25 + (16 - 4) + 4


def prepared(folder: Path, share: bool | None, rows: list[Any] = ROWS, **options: Any) -> tuple[Store, str]:
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceConfig(path=str(folder / "pairs.jsonl"), format=Format.preference, as_chat=True)
    given = {"seq_len": 256, "num_workers": 1, "validation_frac": 0.0, **options}
    data = DataConfig(
        sources={"s": source}, cache_dir=str(folder / "cache"), share_prompts=share, values=[], **given
    )
    shown = io.StringIO()
    return prepare(data, CHAT, lambda: CHAT, None, Console(file=shown, width=200))["s"], shown.getvalue()


def documents_of(split: SplitStore) -> list[tuple[list[int], list[int]]]:
    """Return every answer with its prompt as a model sees it: tokens and labels, sorted."""
    found = []
    for index in range(split.num_packs):
        micro = read_batch([split], [PackRef(0, index, 0)], 0)
        for segment in np.flatnonzero(micro.units_S >= 0).tolist():
            inside = micro.segments_BT == segment
            seen = int(micro.prefixes_S[segment])
            first = micro.tokens_BT[micro.segments_BT == micro.firsts_S[segment]][:seen].tolist()
            tokens = first + micro.tokens_BT[inside].tolist()
            found.append((tokens, [IGNORE] * seen + micro.labels_BT[inside].tolist()))
    return sorted(found)


def test_the_same_answers_are_learnt_in_fewer_tokens_and_packs(tmp_path: Path) -> None:
    (shared, shown), (whole, told) = prepared(tmp_path, True), prepared(tmp_path, False)
    assert shared.digest != whole.digest and prepared(tmp_path, None)[0].digest == whole.digest
    assert documents_of(shared.train) == documents_of(whole.train)
    ours, theirs = shared.train, whole.train
    assert ours.num_targets == theirs.num_targets == int(ours.pack_targets.sum())
    assert int(ours.pack_chosen.sum()) == int(theirs.pack_chosen.sum())
    assert int(ours.pack_units.sum()) == 20 and ours.num_packs < theirs.num_packs
    assert ours.num_tokens + ours.num_shared == theirs.num_tokens == int(theirs.pack_tokens.sum())
    assert ours.num_tokens == int(ours.pack_tokens.sum()) and theirs.num_shared == 0
    prompts = [CHAT.encode_documents([f"<|im_start|>user\n{row['prompt']}"])[0] for row in ROWS]
    assert ours.num_shared > sum(map(len, prompts)) / 2
    fewer = theirs.num_tokens / ours.num_tokens
    assert f"s: {ours.num_shared:,} tokens of prompts are shared (x{fewer:.2f} fewer)." in shown
    assert "shared" not in told


def test_a_pack_is_named_by_what_its_answers_see(tmp_path: Path) -> None:
    split = prepared(tmp_path, True)[0].train
    pack = split.pack(0)
    assert digest_of_pack(*astuple(pack)) == split.pack_digest(0)
    assert pack.prefixes is not None and max(pack.prefixes) > 2
    pack.prefixes[1] -= 1
    assert digest_of_pack(*astuple(pack)) != split.pack_digest(0)
    assert digest_of_pack(*astuple(pack)[:-1]) != split.pack_digest(0)


def test_a_changed_prefix_on_disk_is_found(tmp_path: Path) -> None:
    store, _ = prepared(tmp_path, True)
    (file,) = (tmp_path / "cache" / "stores" / store.digest / "train").glob("piece_prefix.npy")
    content = bytearray(file.read_bytes())
    content[-4] ^= 1
    file.write_bytes(content)
    from trainer.data.store.store import open_store

    with pytest.raises(DataError, match=r"train/piece_prefix.npy is not as it was written"):
        open_store(file.parents[1], Unit.pair)


def test_a_pair_that_fits_with_its_prompt_once_is_kept(tmp_path: Path) -> None:
    rows = [*ROWS[:4], {"prompt": "long " * 30, "chosen": "a", "rejected": "b"}]
    kept, _ = prepared(tmp_path, True, rows, seq_len=230)
    dropped, _ = prepared(tmp_path, False, rows, seq_len=230)
    assert (kept.train.num_documents, dropped.train.num_documents) == (5, 4)
    assert kept.meta["longest"] <= 230 < dropped.meta["longest"]


def test_a_pack_that_fills_up_has_its_branches_and_no_label(tmp_path: Path) -> None:
    split = prepared(tmp_path, True)[0].train
    micro = read_batch([split], [PackRef(0, 0, 0), FILLER], 0)
    first = len(micro.units_S) // 2
    assert micro.prefixes_S[first:].tolist() == micro.prefixes_S[:first].tolist()
    assert (micro.firsts_S[first:] - first).tolist() == micro.firsts_S[:first].tolist()
    assert (micro.labels_BT[1] == IGNORE).all() and set(micro.units_S[first:].tolist()) == {-1}


def test_a_piece_alone_has_its_prompt(tmp_path: Path) -> None:
    splits = [prepared(tmp_path, share)[0].train for share in (True, False)]
    pieces = [
        sorted(
            (one.tokens.tolist(), one.supervised.tolist(), one.lengths)
            for one in map(split.piece, range(split.num_pieces))
        )
        for split in splits
    ]
    assert len(pieces[0]) == 40 and pieces[0] == pieces[1]


def test_a_forecast_finds_the_tokens_of_prepared_pairs_without_a_tokenizer(tmp_path: Path) -> None:
    store, _ = prepared(tmp_path, True, validation_frac=0.2)
    source = SourceConfig(path=str(tmp_path / "pairs.jsonl"), format=Format.preference, as_chat=True)
    data = DataConfig(
        sources={"s": source},
        cache_dir=str(tmp_path / "cache"),
        share_prompts=True,
        seq_len=256,
        validation_frac=0.2,
    )
    splits = (store.train, store.validation)
    assert shared_counts("s", source, data) == (
        20,
        sum(split.num_tokens for split in splits),
        sum(split.num_shared for split in splits),
    )
    assert all(split.num_shared for split in splits)
    data.seq_len = 128
    assert shared_counts("s", source, data) is None


def test_samples_show_both_answers(tmp_path: Path) -> None:
    _, shown = prepared(tmp_path, True)
    assert "s, sample 1, rejected" in shown
    after = shown.split("s, sample 1, rejected")[1].splitlines()[1]
    assert after == "⟦No.<|im_end|>⟧"
