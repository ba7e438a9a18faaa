"""What stands in for DeepSpeed's checkpoint engine during a save and a load."""

import hashlib
import os
import pickle
import resource
import signal

import pytest
import torch

from trainer.engine.states import Collector, Provider, load_state, read_states, seal, write_states
from trainer.errors import CheckpointError

SHARDS = {
    "mp_rank_00_model_states.pt": {"module": {"w": torch.arange(6.0)}},
    "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt": {"exp_avg": torch.ones(3)},
}


class Inner:
    """DeepSpeed's own."""

    name = "inner"


def test_a_save_touches_no_disk_and_a_load_gives_what_was_read(tmp_path):
    collector = Collector(Inner())
    collector.makedirs(str(tmp_path / "new"), exist_ok=True)
    collector.save({"a": 1}, str(tmp_path / "new" / "one.pt"))
    assert collector.states == {"one.pt": {"a": 1}} and collector.name == "inner"
    assert not list(tmp_path.iterdir())
    provider = Provider(Inner(), collector.states)
    assert provider.load(f"{tmp_path}/elsewhere/one.pt", map_location="cpu") == {"a": 1}
    assert provider.name == "inner"


def test_every_file_is_written_digested_and_read_by_its_rank(tmp_path):
    written = write_states(SHARDS, tmp_path)
    assert [f.path.name for f in written] == list(SHARDS)
    for file in written:
        assert file.sha256 == hashlib.sha256(file.path.read_bytes()).hexdigest()
        assert seal(file.path) == file and file.num_bytes == file.path.stat().st_size
    mine = read_states(tmp_path, 1)
    assert sorted(mine) == sorted(SHARDS)
    assert torch.equal(mine["mp_rank_00_model_states.pt"]["module"]["w"], torch.arange(6.0))
    assert list(read_states(tmp_path, 0)) == ["mp_rank_00_model_states.pt"]
    # Rank 1 is not rank 11, and at stage 3 each rank has its own model states.
    (tmp_path / "engine" / "zero_pp_rank_11_mp_rank_00_model_states.pt").write_bytes(b"")
    assert sorted(read_states(tmp_path, 1)) == sorted(SHARDS)


def test_shards_that_are_not_there_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no shard of rank 3"):
        read_states(tmp_path, 3)


class Touch:
    """Unpickled, it makes a file: the code of a stranger."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("is_mapped", [False, True])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, protocol, is_mapped):
    path = tmp_path / "engine" / "mp_rank_00_model_states.pt"
    path.parent.mkdir()
    torch.save({"module": Touch(tmp_path / "made")}, path, pickle_protocol=protocol)
    with pytest.raises(CheckpointError, match="must hold tensors, numbers and texts alone"):
        load_state(path, is_mapped)
    assert not (tmp_path / "made").exists()


def test_a_bare_pickle_in_the_place_of_a_checkpoint_is_not_run(tmp_path):
    path = tmp_path / "mp_rank_00_model_states.pt"
    path.write_bytes(pickle.dumps(Touch(tmp_path / "made")))
    with pytest.raises(ValueError, match=r"torch\.save"):
        load_state(path)
    assert not (tmp_path / "made").exists()


def test_a_disk_that_takes_no_more_speaks_for_itself(tmp_path):
    """torch tells of "file write failed", from which nobody learns that the disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(OSError, match="File too large"):
            write_states({"big.pt": {"w": torch.ones(1_000_000)}}, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
