"""What a rank writes where a hang is found: here with a stand-in of NCCL's flight recorder, which needs GPUs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as torch_dist
from torch._C import _distributed_c10d as c10d

from trainer.dist.stacks import Stacks

DUMP = b'{"version": "2.10", "entries": [{"profiling_name": "nccl:all_reduce", "state": "scheduled"}]}'


def written(folder: Path) -> str:
    stacks = Stacks(3)
    stacks.keep_in(folder)
    stacks.write("Rank 3 has stood still.")
    stacks.close()
    return (folder / "rank-3.stacks").read_text(encoding="utf-8")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Return what gives this process a group of NCCL, and a recorder that does as it is told."""

    def have(dump: Any, backend: str = "nccl") -> None:
        monkeypatch.setattr(torch_dist, "is_initialized", lambda: True)
        monkeypatch.setattr(torch_dist, "get_backend", lambda: backend)
        monkeypatch.setattr(c10d, "_dump_nccl_trace_json", dump, raising=False)

    return have


@pytest.mark.parametrize("dump", [DUMP, DUMP.decode()])
def test_what_nccl_remembers_of_its_collectives_is_written_beside_the_stacks(recorder, tmp_path, dump):
    recorder(lambda: dump)
    said = written(tmp_path)
    assert said.startswith("Rank 3 has stood still.\n") and "in written" in said, "a line of the stacks"
    assert said.endswith("\nNCCL's flight recorder: in rank-3.nccl.json\n")
    assert (tmp_path / "rank-3.nccl.json").read_bytes() == DUMP


def test_where_there_is_none_the_stacks_say_why(recorder, tmp_path):
    def fail() -> str:
        raise RuntimeError("no such communicator")

    for number, (dump, backend, why) in enumerate(
        [
            (fail, "nccl", "none, RuntimeError: no such communicator"),
            (None, "nccl", "none, this torch has no _dump_nccl_trace_json."),
            (lambda: DUMP, "cpu:gloo", "none, the ranks do not use NCCL."),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        recorder(dump, backend)
        assert written(folder).endswith(f"\nNCCL's flight recorder: {why}\n")
        assert [path.name for path in folder.iterdir()] == ["rank-3.stacks"]
