"""Rung 6: a step with non-finite numbers changes nothing, on any rank, and too many of them end the run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.dist.session import config_of, loader_of, session_of


def poisoned_steps(mesh: Any, workspace: str, run_dir: str, overrides: list[str], kind: str) -> Any:
    """Train three steps, the second poisoned in one micro-batch of one rank."""
    import torch

    from trainer.objective.causal_lm.cross_entropy import CausalLMObjective
    from trainer.run.step import train_step

    records = []
    with session_of(config_of(workspace, run_dir, *overrides)) as session:
        engine, loader = session.policy.engine, loader_of(session)
        objective = CausalLMObjective(loader.names)
        forward, calls = engine.forward, []

        def poisoned(ask: Any, **inputs: Any) -> Any:
            out = forward(ask, **inputs)
            calls.append(1)
            if kind == "inf" and mesh.is_first and len(calls) == 1:
                return out[0] * torch.inf, out[1]
            if kind == "nan" and mesh.is_first and len(calls) == 1:
                return out[0] * torch.nan, out[1] * torch.nan
            return out

        for step in range(3):
            before = answers_of(session)
            engine.set_lr(1e-3)
            engine.forward = poisoned if step == 1 else forward
            result = train_step(session.policy, objective, loader.read(step), stop=lambda: False)
            engine.forward = forward
            moved = float((answers_of(session) - before).abs().max())
            records.append([result.is_applied, result.is_sound, result.loss, result.grad_norm, moved])
        loader.close()
    return records


def answers_of(session: Any) -> Any:
    """Return logits: they show every change of the parameters, at every stage."""
    import numpy as np

    from trainer.evaluate.proofs.fingerprint import take_fingerprint

    tokens = np.arange(4, 60)
    return take_fingerprint(session.policy, tokens).logits_KV


def assert_skipped(results: list[Any], kind: str) -> None:
    for records in results:
        good, bad, after = records
        assert good[:2] == [True, True] and good[4] > 0
        assert bad[:2] == [False, False] and not math.isfinite(bad[3])
        assert math.isfinite(bad[2]) == (kind == "inf")
        assert bad[4] == 0.0, "the poisoned step changed the parameters"
        assert after[:2] == [True, True] and after[4] > 0
        assert math.isfinite(after[2]) and math.isfinite(after[3])


@pytest.mark.parametrize(
    ("stage", "method"),
    [
        (1, "lora"),
        (3, "full"),
        pytest.param(1, "full", marks=pytest.mark.slow),
        pytest.param(2, "full", marks=pytest.mark.slow),
    ],
    ids=lambda value: str(value),
)
def test_one_poisoned_batch_of_one_rank_is_skipped_by_all_in_bf16(pool, workspace, tmp_path, stage, method):
    """Parameters moved or not finite: the optimizer stepped on bad gradients. The next step not sound: the
    bad gradients stayed in the accumulation buffer. Ranks disagree: the skip is not a collective decision.
    """
    overrides = [f"zero.stage={stage}", "zero.dtype=bf16", f"tune.method={method}"]
    kind = "nan" if stage == 2 else "inf"
    results = pool(2).run(
        poisoned_steps, workspace=workspace, run_dir=str(tmp_path), overrides=overrides, kind=kind
    )
    assert_skipped(results, kind)


@pytest.mark.parametrize(
    ("stage", "dtype"),
    [
        (0, "bf16"),
        (2, "fp32"),
        *(pytest.param(stage, "fp32", marks=pytest.mark.slow) for stage in (0, 1, 3)),
    ],
)
def test_one_poisoned_batch_is_skipped_at_stage_0_and_in_fp32(pool, workspace, tmp_path, stage, dtype):
    """As above, on the paths that DeepSpeed does not guard in the same way."""
    overrides = [f"zero.stage={stage}", f"zero.dtype={dtype}", "train.micro_batch_size=4"]
    results = pool(1).run(
        poisoned_steps, workspace=workspace, run_dir=str(tmp_path), overrides=overrides, kind="inf"
    )
    assert_skipped(results, "inf")


def train_broken_model(mesh: Any, workspace: str, folder: str) -> list[Any]:
    """Train a model whose weights hold a NaN."""
    import shutil

    from safetensors.torch import load_file, save_file

    from trainer.run import training

    model = Path(folder) / "broken"
    if mesh.is_first:
        shutil.copytree(Path(workspace) / "model", model)
        tensors = load_file(model / "model.safetensors")
        tensors["model.norm.weight"][3] = math.nan
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    mesh.barrier()
    config = config_of(
        workspace,
        f"{folder}/run",
        f"model.path={model}",
        "model.verify_weights=false",
        "train.isolation_probe=false",
        "train.max_non_finite_steps=2",
        "checkpoint.every_steps=5",
        "zero.dtype=bf16",
    )
    reason = training.run_training(config)
    return [reason.value]


def test_a_run_that_stays_non_finite_stops_and_commits_nothing(pool, workspace, tmp_path):
    """Going on: bad steps are not counted in a row. A checkpoint: what must not be resumed was saved."""
    assert pool(2).run(train_broken_model, workspace=workspace, folder=str(tmp_path)) == [["non_finite"]] * 2
    run_dir = tmp_path / "run"
    assert not list(run_dir.glob("checkpoints/*"))
    events = [json.loads(line) for line in (run_dir / "ledger.jsonl").read_text().splitlines()]
    assert [(e["event"], e["step"]) for e in events if e["event"] == "skipped"] == [
        ("skipped", 1),
        ("skipped", 2),
        ("skipped", 3),
    ]
    assert events[-1]["event"] == "stopped" and events[-1]["reason"] == "non_finite"
    assert "in a row: 3" in (run_dir / "logs" / "attempt-1" / "rank-0.log").read_text()
