"""The harness itself: a rank that hangs or dies fails the test at once and leaves no process behind."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.ranks import RankFailure, Ranks


def misbehave(mesh: Any, how: str) -> list[int]:
    if how == "hang" and mesh.rank == 1:
        time.sleep(600)
    if how == "die" and mesh.rank == 1:
        os._exit(3)
    mesh.barrier()
    return [os.getpid(), round(mesh.sum([mesh.rank + 1.0])[0])] if how == "work" else []


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.slow
def test_a_rank_that_hangs_or_dies_ends_all_of_them_and_the_next_call_starts_anew(tmp_path):
    ranks = Ranks(2, tmp_path)
    try:
        first = ranks.run(misbehave, how="work")
        assert [total for _, total in first] == [3, 3]
        assert ranks.run(misbehave, how="work") == first, "the processes are kept"
        with pytest.raises(RankFailure, match=r"was not done in time on ranks \[0, 1\]"):
            ranks.run(misbehave, timeout_s=1, how="hang")
        assert not any(is_running(pid) for pid, _ in first)
        with pytest.raises(RankFailure, match="rank 1 died with 3"):
            ranks.run(misbehave, how="die")
    finally:
        ranks.close()
