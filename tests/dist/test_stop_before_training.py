"""A signal while weights are read, or proofs are made, ends the run between two tensors or passes, on all ranks.

Nothing of it is left.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
from pathlib import Path
from typing import Any

import pytest

AT = 3
"""The tensor in the middle of which the signal comes."""


@contextlib.contextmanager
def counted(holder: Any, name: str, tells: bool) -> Any:
    """Count the calls of a function of a library; in the middle of one this process gets a signal."""
    calls: list[int] = []
    whole = getattr(holder, name)

    def count(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if tells and len(calls) == AT:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(*arguments, **options)

    setattr(holder, name, count)
    try:
        yield calls
    finally:
        setattr(holder, name, whole)


def stop_and_go_on(mesh: Any, workspace: str, run_dir: str, stage: int, proves: bool = False) -> list[Any]:
    """Stop the last rank in the middle of a tensor or a proof, then give the same command again; return what came."""
    import deepspeed
    from transformers import core_model_loading

    from launch.status import run_status
    from trainer.cli import run_command
    from trainer.engine.policy import Policy

    words = ["train", "--config", f"{workspace}/config.yaml", f"run_dir={run_dir}", f"zero.stage={stage}"]
    words += ["train.max_steps=1", "evaluate.every_steps=0", "evaluate.forgetting=false"]
    place = (
        (core_model_loading, "set_param_for_module") if stage < 3 else (deepspeed.zero, "GatheredParameters")
    )
    place = (Policy, "answer_raw") if proves else place
    said = io.StringIO()
    with counted(*place, tells=mesh.rank == mesh.num_ranks - 1) as calls, contextlib.redirect_stderr(said):
        code = run_command(words)
    mesh.barrier()
    left = [*sorted(path.name for path in Path(run_dir).iterdir()), run_status(Path(run_dir)).state]
    mesh.barrier()
    return [code, len(calls), said.getvalue(), left, run_command(words)]


@pytest.mark.parametrize(("num_ranks", "stage"), [(1, 1), (2, 3)])
def test_a_signal_to_one_rank_ends_the_proofs_on_all(pool, workspace, tmp_path, num_ranks, stage):
    """It was heard before the first step, which is many passes later."""
    run_dir = str(tmp_path / "run")
    arguments = {"workspace": workspace, "run_dir": run_dir, "stage": stage, "proves": True}
    found = pool(num_ranks).run(stop_and_go_on, **arguments)
    for code, num_passes, _, left, again in found:
        assert (code, num_passes) == (75, AT), "no rank goes on to the next pass"
        assert not {"checkpoints", "metrics.jsonl", "ledger.jsonl"} & set(left)
        assert left[-1] == "stopped, nothing saved", "it was said not to have begun"
        assert again == 0, "the same command goes on"
    said = found[0][2]
    assert (
        "Proving the loaded model before it is used: that the loss is made from its own logits, that" in said
    )
    assert "A signal asked to stop before the first step: nothing was trained, and nothing is saved." in said


@pytest.mark.parametrize(("num_ranks", "stage"), [(1, 1), (2, 1), (2, 3)])
def test_a_signal_to_one_rank_ends_the_loading_on_all(pool, workspace, tmp_path, num_ranks, stage):
    run_dir = str(tmp_path / "run")
    found = pool(num_ranks).run(stop_and_go_on, workspace=workspace, run_dir=run_dir, stage=stage)
    for code, num_tensors, _, left, again in found:
        assert (code, num_tensors) == (75, AT), "no rank reads on, and the exit code asks for a requeue"
        assert not {"checkpoints", "metrics.jsonl", "ledger.jsonl", "deepspeed.json"} & set(left)
        assert again == 0, "the same command goes on"
    said = found[0][2]
    assert "A signal asked to stop before the first step: nothing was trained, and nothing is saved." in said
    assert f"Stopped by a signal. There is no checkpoint in {run_dir}. Start the same command again" in said
