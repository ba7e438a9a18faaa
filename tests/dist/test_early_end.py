"""A run that ends with an error before its first step: what it leaves says so."""

from __future__ import annotations

import shutil
from typing import Any

from launch.status import run_status


def fail(mesh: Any, workspace: str, run_dir: str, base: str) -> int:
    """Train from weights that were cut off; return the exit code."""
    from trainer.cli import run_command

    return int(
        run_command(
            ["train", "--config", f"{workspace}/config.yaml", f"run_dir={run_dir}", f"model.path={base}"]
        )
    )


def test_the_sentence_the_code_and_the_time_are_left_by_the_rank_that_knows(pool, workspace, tmp_path):
    """Status said "not begun", with one attempt and without an error."""
    from tests.dist.session import config_of

    run_dir, base = tmp_path / "run", tmp_path / "base"
    shutil.copytree(str(config_of(workspace, run_dir).model.path), base)
    (weights,) = base.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    codes = pool(2).run(fail, workspace=workspace, run_dir=str(run_dir), base=str(base))
    assert codes == [2, 2]
    status = run_status(run_dir)
    assert (status.state, status.num_attempts) == ("must be mended", 1)
    assert (
        status.last_error is not None
        and status.last_error.startswith("Error: ")
        and str(base) in status.last_error
    )
    assert status.ended is not None and status.ended.endswith(" with exit code 2")
