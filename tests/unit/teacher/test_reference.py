"""The base model's answers on disk: whole or not at all, and the right rows for every pack."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers.wait import LIMIT_S
from tests.unit.mix.test_loader import STORES
from trainer.data.pack.refs import PackRef, read_micro_batch
from trainer.dist.mesh import Axis
from trainer.errors import DataError
from trainer.mix.loader import TrainLoader
from trainer.mix.plan import DataPlan, Pool
from trainer.runtime.seal import sealed_text
from trainer.teacher.reference import (
    BYTES_PER_TOKEN,
    BaseReference,
    ReferenceWriter,
    is_whole,
    publish,
)

K = 3
REPLAY = 1
"""The second of the loader's stores is replay: 9 packs."""


def answers(pack):
    """What the made-up base says of a pack: values that name the pack, the position and the place."""
    num_rows = int(STORES[REPLAY].pack_targets[pack])
    ids = 1000 * pack + 10 * np.arange(num_rows)[:, None] + np.arange(K)
    return ids.astype(np.int32), (-ids / 16).astype(np.float32)


def build(folder, packs=range(9), num_parts=2, source=0):
    """Write parts in turn, as ranks do, and publish them."""
    staging = folder / ".tmp-x"
    staging.mkdir(parents=True)
    for rank in range(num_parts):
        writer = ReferenceWriter(staging, rank)
        for pack in list(packs)[rank::num_parts]:
            writer.add(source, pack, *answers(pack))
        writer.close()
    publish(staging, folder / "key", {"top": K}, num_parts)
    return folder / "key"


def read(reference, refs):
    return reference.rows_of(read_micro_batch(STORES, refs, 0), refs)


@pytest.mark.parametrize("num_parts", [1, 2, 4])
def test_every_pack_gets_its_rows_at_its_supervised_positions_whoever_wrote_them(tmp_path, num_parts):
    reference = BaseReference([build(tmp_path, num_parts=num_parts)], {REPLAY: 0})
    assert reference.num_positions == STORES[REPLAY].pack_targets.sum()
    for first, second in ((0, 8), (5, 3), (7, 7)):
        refs = [PackRef(REPLAY, first, 0), PackRef(0, 4, 0), PackRef(REPLAY, second, 1)]
        rows = read(reference, refs)
        ids, log_probs = (np.concatenate(pair) for pair in zip(answers(first), answers(second), strict=True))
        assert np.array_equal(rows.ids_RK, ids) and rows.ids_RK.dtype == np.int32
        assert np.array_equal(rows.log_probs_RK, log_probs.astype(np.float16))
        labels = read_micro_batch(STORES, refs, 0).labels_BT.copy()
        labels[1] = -100
        assert np.array_equal(rows.rows_R, np.flatnonzero(labels.reshape(-1) != -100))


def test_a_micro_batch_without_replay_has_no_rows(tmp_path):
    reference = BaseReference([build(tmp_path)], {REPLAY: 0})
    assert read(reference, [PackRef(0, 1, 0), PackRef(0, 2, 0)]) is None


def test_the_bytes_are_those_that_are_announced(tmp_path):
    folder = build(tmp_path)
    written = sum(file.stat().st_size for file in folder.glob("*.bin"))
    assert written == STORES[REPLAY].pack_targets.sum() * K * BYTES_PER_TOKEN


def test_a_pack_that_nobody_asked_the_base_about_is_an_error_not_a_zero(tmp_path):
    reference = BaseReference([build(tmp_path, packs=[0, 2, 5])], {REPLAY: 0})
    assert len(read(reference, [PackRef(REPLAY, 5, 0)]).ids_RK) == STORES[REPLAY].pack_targets[5]
    for pack in (1, 8):
        with pytest.raises(DataError, match=f"pack {pack} of its source 0, but holds 0 instead"):
            read(reference, [PackRef(REPLAY, pack, 0)])
    other = BaseReference([build(tmp_path / "other", source=1)], {REPLAY: 0})
    with pytest.raises(DataError, match="holds 0 instead"):
        read(other, [PackRef(REPLAY, 0, 0)])


def test_a_part_without_packs_is_no_trouble(tmp_path):
    reference = BaseReference([build(tmp_path, packs=[4], num_parts=3)], {REPLAY: 0})
    assert np.array_equal(read(reference, [PackRef(REPLAY, 4, 0)]).ids_RK, answers(4)[0])


def test_a_part_that_did_not_arrive_is_refused_as_a_folder_that_is_not_shared(tmp_path):
    staging = tmp_path / ".tmp-x"
    staging.mkdir()
    ReferenceWriter(staging, 0).close()
    with pytest.raises(DataError, match="must be a folder that all ranks share"):
        publish(staging, tmp_path / "key", {}, 2)
    assert not (tmp_path / "key").exists()


@pytest.mark.parametrize("damage", ["short", "missing", "version", "unreadable"])
def test_a_damaged_reference_is_not_whole_and_is_made_again(tmp_path, damage):
    folder = build(tmp_path)
    meta = json.loads((folder / "meta.json").read_text())
    if damage == "short":
        with (folder / "00001.ids.bin").open("rb+") as file:
            file.truncate(12)
    elif damage == "missing":
        (folder / "00000.log_probs.bin").unlink()
    elif damage == "version":
        del meta["seal"]
        (folder / "meta.json").write_text(sealed_text(meta | {"version": 0}))
    else:
        (folder / "meta.json").write_text("{")
    assert not is_whole(folder)
    with pytest.raises(DataError, match="must hold the base model's log-probabilities whole"):
        BaseReference([folder], {REPLAY: 0})
    assert is_whole(build(tmp_path))


@pytest.mark.parametrize("name", ["meta.json", "00001.index.npy", "00001.ids.bin", "00001.log_probs.bin"])
def test_one_flipped_bit_of_a_reference_is_found_when_it_is_read(name, tmp_path):
    folder = build(tmp_path)
    original = (folder / name).read_bytes()
    refs = [PackRef(REPLAY, pack, 0) for pack in range(9)]
    for place in np.linspace(0, len(original) - 1, 9).astype(int):
        changed = bytearray(original)
        changed[place] ^= 16
        (folder / name).write_bytes(changed)
        with pytest.raises(DataError, match=r"log-probabilities whole, but .*Delete that folder") as caught:
            read(BaseReference([folder], {REPLAY: 0}), refs)
        assert str(folder) in str(caught.value) and name in str(caught.value)
        assert is_whole(folder) == name.endswith(".bin"), "what is large is compared pack by pack"
    (folder / name).write_bytes(original)
    assert len(read(BaseReference([folder], {REPLAY: 0}), refs).ids_RK) == STORES[REPLAY].pack_targets.sum()


KILLED = """
import json, os, signal, sys
from pathlib import Path
from tests.unit.teacher.test_reference import build

left = 0
def dies_at(name):
    real = getattr(os, name)
    def call(*arguments):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)
    setattr(os, name, call)
for name in ("fsync", "rename"):
    dies_at(name)

codes = []
for number in range(20):
    child = os.fork()
    if child == 0:
        left = number
        build(Path(sys.argv[1]) / str(number))
        os._exit(0)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    if codes[-1] == 0:
        break
print(json.dumps(codes))
"""


def test_a_killed_build_leaves_nothing_or_all(tmp_path):
    """Killed before each sync and the rename in turn, until it lives. One process imports, its children die."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], timeout=LIMIT_S, check=True, stdout=subprocess.PIPE
    )
    codes = json.loads(done.stdout)
    keys = [tmp_path / str(number) / "key" for number in range(len(codes))]
    assert codes[-1] == 0 and set(codes[:-1]) == {-signal.SIGKILL} and keys[-1].exists()
    assert all(is_whole(key) or not key.exists() for key in keys)
    assert sum(not key.exists() for key in keys) >= 8, "the parts of two ranks, meta.json and the folder"


def test_the_loader_reads_the_rows_of_the_replay_in_every_micro_batch(tmp_path):
    pools = [
        Pool("new", False, 1.0, [0], [STORES[0].pack_targets]),
        Pool("old", True, 1.0, [REPLAY], [STORES[REPLAY].pack_targets]),
    ]
    plan, same = (DataPlan(pools, 8, 16, lambda step: 0.4, seed=1) for _ in range(2))
    reference = BaseReference([build(tmp_path)], {REPLAY: 0})
    loader = TrainLoader(["new", "old"], STORES, plan, Axis(0, 1), 2, 0, reference.rows_of)
    num_rows = 0
    for step in range(6):
        refs = same.packs_of_step(step)
        for index, micro in enumerate(loader.take(step).micro_batches):
            replayed = [ref for ref in refs[2 * index : 2 * index + 2] if ref.source == REPLAY]
            ids = [answers(ref.pack)[0] for ref in replayed]
            if not sum(map(len, ids)):
                assert micro.attached is None
                continue
            assert np.array_equal(micro.attached.ids_RK, np.concatenate(ids))
            assert (micro.labels_BT.reshape(-1)[micro.attached.rows_R] != -100).all()
            num_rows += len(micro.attached.rows_R)
    loader.close()
    assert num_rows > 50
