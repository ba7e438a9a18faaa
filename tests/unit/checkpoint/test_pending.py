"""A save beside the training: what is copied, and what a thread says of what it wrote."""

import threading

import pytest
import torch

from trainer.checkpoint.pending import HostCopies, PendingWrite
from trainer.checkpoint.shard_file import BUFFER, WEIGHT, Fragment
from trainer.runtime import host_memory
from trainer.runtime.host_memory import bytes_available


def test_a_copy_is_of_its_moment_and_its_memory_is_used_again():
    weights = torch.arange(12.0)
    flags = torch.tensor([[True, False]])
    fragments = [
        Fragment(WEIGHT, "a", 4, weights[4:10]),
        Fragment(BUFFER, "flags", 0, flags),
        Fragment("exp_avg", "a", 4, weights[:3]),
    ]
    copies = HostCopies()
    first = copies.take(fragments)
    weights.zero_()
    flags.zero_()
    assert [copy.key for copy in first] == [fragment.key for fragment in fragments]
    assert torch.equal(first[0].values, torch.arange(4.0, 10.0)) and torch.equal(
        first[2].values, torch.arange(3.0)
    )
    assert first[1].values.tolist() == [[True, False]]
    second = copies.take(fragments[:1])
    assert second[0].values.data_ptr() == first[0].values.data_ptr() and not second[0].values.any()
    assert copies.take([]) == []


def test_what_a_thread_wrote_or_could_not_write_is_told_to_who_waits():
    gate = threading.Event()

    def write():
        gate.wait()
        return []

    pending = PendingWrite(write)
    assert not pending.is_done
    gate.set()
    assert pending.wait() == ([], None) and pending.is_done

    def fail():
        raise OSError(28, "No space left on device")

    files, error = PendingWrite(fail).wait()
    assert files is None and isinstance(error, OSError) and error.errno == 28


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({}, 900),
        ({"memory.max": "max", "memory.current": "5"}, 900),
        ({"memory.max": "700", "memory.current": "300"}, 400),
        ({"memory.max": "300", "memory.current": "700"}, 0),
        ({"memory/memory.limit_in_bytes": "650", "memory/memory.usage_in_bytes": "50"}, 600),
    ],
)
def test_memory_is_what_the_machine_and_the_group_have_left(tmp_path, monkeypatch, files, left):
    class Memory:
        available = 900

    monkeypatch.setattr(host_memory.psutil, "virtual_memory", Memory)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert bytes_available(tmp_path) == left
