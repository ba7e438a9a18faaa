"""The files that hold a checkpoint's numbers: written by any ranks, read by any other, and by plain safetensors."""

import hashlib
import itertools
import json
import os
import pickle
import resource
import signal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from trainer.checkpoint import shards as shards_module
from trainer.checkpoint.commit import seal
from trainer.checkpoint.manifest import Lineage, Manifest, manifest_text
from trainer.checkpoint.shard_file import BUFFER, WEIGHT, Fragment, split_key, write_shard
from trainer.checkpoint.shards import FOLDER, Shards, open_shards, write_shards
from trainer.errors import CheckpointError


def cut(name, whole, cuts, kind=WEIGHT):
    """Return a tensor in fragments, cut at these places."""
    flat = whole.reshape(-1)
    places = [0, *sorted(cuts), flat.numel()]
    return [
        Fragment(kind, name, begin, flat[begin:end])
        for begin, end in itertools.pairwise(places)
        if end > begin
    ]


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 40), max_size=4),
    num_files=st.integers(1, 3),
    data=st.data(),
)
def test_any_part_of_a_tensor_is_read_from_any_cuts_of_it(tmp_path_factory, shape, cuts, num_files, data):
    folder = tmp_path_factory.mktemp("shards")
    whole = torch.arange(float(torch.Size(shape).numel())).view(shape)
    fragments = cut("a.b@c/d", whole, [c for c in cuts if c < whole.numel()])
    for rank in range(num_files):
        facts = {"shapes": {"a.b@c/d": shape}} if rank == 0 else {}
        write_shard(folder / f"{rank}.safetensors", fragments[rank::num_files], facts)
    shards = Shards(folder.iterdir())
    assert torch.equal(shards.whole("a.b@c/d"), whole) and shards.kinds("a.b@c/d") == [WEIGHT]
    begin = data.draw(st.integers(0, whole.numel()))
    end = data.draw(st.integers(begin, whole.numel()))
    out = torch.full((end - begin,), -1.0)
    shards.fill(WEIGHT, "a.b@c/d", begin, out)
    assert torch.equal(out, whole.reshape(-1)[begin:end])


def test_plain_safetensors_reads_a_file_of_any_types(tmp_path):
    values = [
        Fragment(WEIGHT, "w", 3, torch.tensor([1.5, -2.0])),
        Fragment("exp_avg", "w", 3, torch.tensor([0.25, 7.0], dtype=torch.bfloat16)),
        Fragment(BUFFER, "mask", 0, torch.tensor([[True, False, True]])),
        Fragment(BUFFER, "steps", 0, torch.tensor(7)),
    ]
    write_shard(tmp_path / "one.safetensors", values, {"scalars": {"w": {"step": 5.0}}, "more": [1]})
    found = load_file(tmp_path / "one.safetensors")
    assert {fragment.key for fragment in values} == set(found)
    for fragment in values:
        held = found[fragment.key]
        assert held.dtype == fragment.values.dtype and held.shape == fragment.values.shape
        assert torch.equal(held, fragment.values)
    shards = Shards([tmp_path / "one.safetensors"])
    assert shards.scalars == {"w": {"step": 5.0}} and shards.facts == {"more": [1]}
    assert sorted(shards.buffers) == ["mask", "steps"] and int(shards.buffer("steps")) == 7
    assert split_key("exp_avg/a/b@1@20") == ("exp_avg", "a/b@1", 20)


class Counting:
    """Stands where an opened file stands, and notes how many numbers are asked of it at once."""

    def __init__(self, file, asked, key=None):
        self._file, self._asked, self._key = file, asked, key

    def __getattr__(self, name):
        return getattr(self._file, name)

    def get_slice(self, key):
        return Counting(self._file.get_slice(key), self._asked, key)

    def get_tensor(self, key):
        raise AssertionError(f"all of {key} at once")

    def __getitem__(self, part):
        found = self._file[part]
        self._asked.append((self._key, found.numel()))
        return found


def test_no_more_than_what_is_filled_is_read_of_any_file(tmp_path, monkeypatch):
    """A rank's share of a large tensor may be small: reading the whole of it, or all of a file, would not fit."""
    asked = []
    opened = shards_module.safe_open
    monkeypatch.setattr(
        shards_module, "safe_open", lambda *words, **named: Counting(opened(*words, **named), asked)
    )
    whole = torch.arange(1000.0)
    fragments = cut("w", whole, [600])
    for rank, fragment in enumerate(fragments):
        others = [Fragment(WEIGHT, f"other.{rank}", 0, torch.ones(5000))]
        write_shard(tmp_path / str(rank), [fragment, *others], {"shapes": {"w": [1000]}} if not rank else {})
    shards = Shards(tmp_path.iterdir())
    assert asked == [], "headers alone"
    out = torch.empty(50)
    shards.fill(WEIGHT, "w", 575, out)
    assert torch.equal(out, whole[575:625])
    assert asked == [("weight/w@0", 25), ("weight/w@600", 25)]
    shards.fill(WEIGHT, "w", 0, torch.empty(1000))
    assert asked[2:] == [("weight/w@0", 600), ("weight/w@600", 400)], "no more than a fragment at once"


def test_numbers_that_are_nowhere_are_named(tmp_path):
    write_shard(tmp_path / "a", cut("w", torch.ones(10), [4, 6])[::2], {"shapes": {"w": [10]}})
    shards = Shards([tmp_path / "a"])
    with pytest.raises(CheckpointError, match=r"the numbers 0 to 10 of w \(weight\), but end at 4"):
        shards.whole("w")
    with pytest.raises(CheckpointError, match=r"the numbers 2 to 3 of v \(exp_avg\), but end at 2"):
        shards.fill("exp_avg", "v", 2, torch.empty(1))


def committed(folder, written):
    manifest = Manifest(1, 1, 0, "", "", Lineage("r", 1, None), {}, {})
    files = {str(f.path.relative_to(folder)): (f.num_bytes, f.sha256) for f in written}
    (folder / "manifest.json").write_text(
        manifest_text(Manifest(1, 1, 0, "", "", manifest.lineage, files, {}))
    )


def test_only_files_that_the_manifest_names_are_opened(tmp_path):
    """A stranger's file beside ours would add numbers, or be code."""
    written = write_shards(tmp_path, 3, cut("w", torch.ones(4), []), {"shapes": {"w": [4]}})
    assert write_shards(tmp_path, 4, [], {}) == []
    (file,) = written
    assert file.path == tmp_path / FOLDER / "rank-00003.safetensors" and file == seal(file.path)
    assert file.sha256 == hashlib.sha256(file.path.read_bytes()).hexdigest()
    committed(tmp_path, written)
    write_shards(tmp_path, 0, cut("w", torch.zeros(4), []), {"shapes": {"w": [4]}})
    (tmp_path / FOLDER / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(
        pickle.dumps(Touch(tmp_path))
    )
    assert torch.equal(open_shards(tmp_path).whole("w"), torch.ones(4))
    assert not (tmp_path / "made").exists()


class Touch:
    """Unpickled, it makes a folder: the code of a stranger."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder / "made"),)


def test_code_in_the_place_of_a_shard_is_refused_and_not_run(tmp_path):
    path = tmp_path / "rank-00000.safetensors"
    for content in (pickle.dumps(Touch(tmp_path)), b"", b"\x00" * 7):
        path.write_bytes(content)
        with pytest.raises(Exception, match=r"(?i)header"):
            Shards([path])
    torch.save({"module": Touch(tmp_path)}, path)
    with pytest.raises(Exception, match=r"(?i)header"):
        Shards([path])
    assert not (tmp_path / "made").exists()


def test_a_checkpoint_without_shards_is_of_another_version(tmp_path):
    committed(tmp_path, [])
    with pytest.raises(CheckpointError, match="must name its shards in its manifest"):
        open_shards(tmp_path)


def test_facts_are_plain_json(tmp_path):
    write_shard(tmp_path / "a", cut("w", torch.ones(2), []), {"shapes": {"w": [2]}})
    head = (tmp_path / "a").read_bytes()
    size = int.from_bytes(head[:8], "little")
    header = json.loads(head[8 : 8 + size])
    assert json.loads(header["__metadata__"]["palimpsest"]) == {"shapes": {"w": [2]}}
    assert size % 8 == 0 and header["weight/w@0"] == {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def test_a_disk_that_takes_no_more_speaks_for_itself(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(OSError, match="File too large"):
            write_shards(tmp_path, 0, cut("w", torch.ones(1_000_000), []), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
