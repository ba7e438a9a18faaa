"""A step beyond the bounds changes nothing on any rank, at every stage; a rewound run goes on as without the spike."""

from __future__ import annotations

import functools
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.dist.session import config_of, loader_of, session_of
from tests.dist.test_non_finite import answers_of
from tests.dist.test_resume import contents
from tests.helpers.ranks import RankFailure
from trainer.checkpoint.layout import step_dir
from trainer.config.snapshot import config_path
from trainer.config.store import load_config
from trainer.metrics.jsonl import read


def refused_steps(mesh: Any, workspace: str, run_dir: str, overrides: list[str], kind: str) -> Any:
    """Train four steps, of which the second and third are beyond a bound: once by its loss, once by its norm."""
    from trainer.objective.causal_lm.cross_entropy import CausalLMObjective
    from trainer.run.step import Care, train_step

    records = []
    cares = [Care(), Care(most_loss=1e-3), Care(most_norm=1e-6), Care(most_loss=1e9, most_norm=1e9)]
    with session_of(config_of(workspace, run_dir, *overrides)) as session:
        loader = loader_of(session)
        objective = CausalLMObjective(loader.names)
        for step, care in enumerate(cares):
            before = answers_of(session)
            optimizer = digests(session)
            session.policy.engine.set_lr(1e-3)
            result = train_step(session.policy, objective, loader.read(step), lambda: False, care)
            moved = float((answers_of(session) - before).abs().max())
            same = digests(session) == optimizer
            records.append([result.is_applied, result.is_refused, result.loss, result.grad_norm, moved, same])
        loader.close()
    return records


def digests(session: Any) -> list[str]:
    """Return digests of the optimizer's state on this rank."""
    import hashlib

    import torch

    optimizer = session.policy.engine._ds.optimizer
    state = getattr(optimizer, "optimizer", optimizer).state
    return [
        hashlib.sha256(value.detach().float().cpu().numpy().tobytes()).hexdigest()
        for values in state.values()
        for _, value in sorted(values.items())
        if isinstance(value, torch.Tensor)
    ]


@pytest.mark.parametrize(
    ("num_ranks", "stage", "method", "dtype"),
    [
        (2, 1, "lora", "bf16"),
        (2, 3, "full", "bf16"),
        *(pytest.param(2, stage, "full", "bf16", marks=pytest.mark.slow) for stage in (1, 2)),
        (1, 0, "full", "fp32"),
        *(pytest.param(1, stage, "full", "fp32", marks=pytest.mark.slow) for stage in (1, 2, 3)),
        pytest.param(1, 0, "full", "bf16", marks=pytest.mark.slow),
    ],
)
def test_a_step_beyond_the_bounds_changes_neither_weights_nor_optimizer_on_any_rank(
    pool, workspace, tmp_path, num_ranks, stage, method, dtype
):
    overrides = [f"zero.stage={stage}", f"zero.dtype={dtype}", f"tune.method={method}"]
    overrides += ["train.micro_batch_size=4"] if stage == 0 else []
    results = pool(num_ranks).run(
        refused_steps, workspace=workspace, run_dir=str(tmp_path), overrides=overrides, kind=""
    )
    for good, by_loss, by_norm, after in results:
        assert good[:2] == [True, False] and good[4] > 0
        for refused in (by_loss, by_norm):
            assert refused[:2] == [False, True] and math.isfinite(refused[2])
            assert refused[4] == 0.0 and refused[5], "weights and optimizer are as before"
        assert math.isfinite(by_norm[3]) and by_norm[3] > 1e-6, "the norm that was refused is told"
        assert after[:2] == [True, False] and after[4] > 0 and not after[5]


def train_through_a_spike(
    mesh: Any, workspace: str, run_dir: str, policy: str, kill_at: list[int] | None = None
) -> Any:
    """Train the twelve steps of `words_of`, of which the ninth has fifty times the loss.

    Args:
        kill_at: A batch, and the how manieth time that it comes; the second rank is killed before it.
    """
    from trainer.run import loop, training

    whole = loop.train_step

    seen: list[int] = []

    def spiky(policy: Any, objective: Any, batch: Any, *words: Any) -> Any:
        seen.append(batch.step)
        if kill_at is not None and mesh.rank == 1 and kill_at == [batch.step, seen.count(batch.step)]:
            os.kill(os.getpid(), signal.SIGKILL)
        if batch.step != 8:
            return whole(policy, objective, batch, *words)
        forward = policy.engine.forward

        def larger(ask: Any, **inputs: Any) -> Any:
            out = forward(ask, **inputs)
            return out[0] * 50, out[1] * 50

        policy.engine.forward = larger
        try:
            return whole(policy, objective, batch, *words)
        finally:
            policy.engine.forward = forward

    loop.train_step = spiky
    frozen = config_path(Path(run_dir))
    try:
        config = load_config(frozen) if frozen.exists() else config_of(workspace, run_dir, *words_of(policy))
        return training.run_training(config).value
    finally:
        loop.train_step = whole


def words_of(policy: str) -> list[str]:
    """Return what a run with a spike overrides."""
    return [
        *("train.max_steps=12", "checkpoint.every_steps=2", "checkpoint.keep_last=9", "log.every_steps=1"),
        *("evaluate.every_steps=0", "evaluate.forgetting=false", "schedule.name=constant"),
        *("log.trackers=[tensorboard]", f"train.spikes.policy={policy}"),
        *("train.spikes.least=4", "train.spikes.rewind_steps=3"),
    ]


@pytest.mark.parametrize("policy", ["rewind", pytest.param("skip", marks=pytest.mark.slow)])
def test_a_run_with_a_spike_ends_as_one_without_that_step(pool, workspace, tmp_path, policy):
    """Rewound, the steps before come again to the last bit; what was written of them is moved aside."""
    run_dir = tmp_path / policy
    assert (
        pool(2).run(train_through_a_spike, workspace=workspace, run_dir=str(run_dir), policy=policy)
        == ["finished"] * 2
    )
    rows = {row["step"]: row for row in read(run_dir / "metrics.jsonl") if "lr" in row}
    assert list(rows) == list(range(1, 13)), "each step once"
    assert (
        rows[12]["skipped_steps"] == 1
        and max(row.get("loss", 0) for row in rows.values() if row["step"] != 9) < 10
    )
    events = [json.loads(line) for line in (run_dir / "ledger.jsonl").read_text().splitlines()]
    found = [(e["event"], e["step"]) for e in events if e["event"] in ("spike", "went_back", "passed_over")]
    if policy == "skip":
        assert found == [("spike", 9)]
        return
    assert found == [("spike", 9), ("went_back", 4), ("passed_over", 8)]
    assert shown_by_tensorboard(run_dir) == {step: row["grad_norm"] for step, row in rows.items()}
    (aside,) = run_dir.glob("abandoned-*/metrics.jsonl")
    for row in read(aside):
        if row["step"] != 9 and "loss" in row:
            assert (row["loss"], row["grad_norm"]) == tuple(
                rows[row["step"]][key] for key in ("loss", "grad_norm")
            )


def test_a_run_that_is_killed_between_a_spike_and_its_end_takes_the_same_steps(pool, workspace, tmp_path):
    """Killed before the steps that come again are saved, and after the data of the spike was passed over."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run = functools.partial(pool(2).run, train_through_a_spike, workspace=workspace, policy="rewind")
    assert run(run_dir=str(whole)) == ["finished"] * 2
    for kill_at in ([5, 2], [10, 1]):
        with pytest.raises(RankFailure, match="died with -9"):
            run(run_dir=str(killed), kill_at=kill_at)
    assert run(run_dir=str(killed)) == ["finished"] * 2
    rows = [
        {row["step"]: row for row in read(path / "metrics.jsonl") if "lr" in row} for path in (whole, killed)
    ]
    keys = ("lr", "grad_norm", "tokens_seen", "skipped_steps")
    before, after = ([[row.get("loss"), *(row[key] for key in keys)] for row in one.values()] for one in rows)
    assert list(rows[1]) == list(range(1, 13)) and str(after) == str(before)
    assert contents(step_dir(killed, 12)) == contents(step_dir(whole, 12))
    events = [json.loads(line) for line in (killed / "ledger.jsonl").read_text().splitlines()]
    found = [(e["event"], e["step"]) for e in events if e["event"] in ("spike", "went_back", "passed_over")]
    assert found[:4] == [("spike", 9), ("went_back", 4)] * 2
    assert set(found[4:]) == {("passed_over", 8)}, "once more where the last kill came before it was saved"


def shown_by_tensorboard(run_dir: Path) -> dict[int, float]:
    """Return the gradient norms in its event files, which must have each step once."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    points = EventAccumulator(str(run_dir / "tensorboard")).Reload().Scalars("grad_norm")
    assert [point.step for point in points] == list(range(1, 13))
    return {point.step: pytest.approx(point.value, rel=1e-6, nan_ok=True) for point in points}


def verify_steps(
    mesh: Any, workspace: str, run_dir: str, stage: int, fault: str | None, at: int = 0
) -> list[Any]:
    """Do a step of two micro-batches again; on rank 1 one of four passes may come out otherwise.

    Returns what was said, and the passes.
    """
    import torch

    from trainer.errors import SelfCheckError
    from trainer.objective.causal_lm.cross_entropy import CausalLMObjective
    from trainer.run.again import check_again

    torch.use_deterministic_algorithms(False)
    calls = {"forward": 0, "weight": 0}

    def flipped(kind: str, value: Any) -> Any:
        calls[kind] += 1
        if fault == kind and mesh.rank == 1 and calls[kind] == at:
            value = value.clone()
            value.view(-1)[7] *= 1.0001
        return value

    with session_of(
        config_of(workspace, run_dir, f"zero.stage={stage}", "model.checkpoint_layers=0")
    ) as session:
        loader, module = loader_of(session), session.policy.module
        batch = loader.read(0)
        assert len(batch.micro_batches) == 2
        before = answers_of(session)
        layer = next(m for m in module.modules() if type(m).__name__ == "LlamaMLP")
        last = [p for n, p in module.named_parameters() if n.endswith("mlp.up_proj.weight")][-1]
        hooks = [layer.register_forward_hook(lambda module, inputs, output: flipped("forward", output))]
        if stage < 3:
            hooks.append(last.register_hook(lambda gradient: flipped("weight", gradient)))
        drawn = torch.get_rng_state()
        try:
            check_again(session.policy, CausalLMObjective(loader.names), batch, 1)
        except SelfCheckError as error:
            return [str(error), calls["forward"]]
        finally:
            for hook in hooks:
                hook.remove()
            loader.close()
        assert torch.equal(drawn, torch.get_rng_state())
        assert all(p.grad is None for p in module.parameters())
        passes = calls["forward"]
        assert float((answers_of(session) - before).abs().max()) == 0.0
    return ["", passes]


def train_and_verify(mesh: Any, workspace: str, run_dir: str, words: list[str], fault_at: int) -> list[Any]:
    """Train on ranks of which the second computes a step otherwise when it is done again; return how it ended."""
    from trainer.errors import SelfCheckError
    from trainer.run import loop, training

    whole, looked = loop.check_again, []

    def check(policy: Any, objective: Any, batch: Any, step: int) -> None:
        looked.append(step)
        calls: list[int] = []

        def flip(module: Any, inputs: Any, output: Any) -> Any:
            calls.append(1)
            is_wrong = mesh.rank == 1 and step == fault_at and len(calls) == 2
            return output * 1.0001 if is_wrong else output

        layer = next(m for m in policy.module.modules() if type(m).__name__ == "LlamaMLP")
        handle = layer.register_forward_hook(flip)
        try:
            whole(policy, objective, batch, step)
        finally:
            handle.remove()

    loop.check_again = check
    try:
        return [training.run_training(config_of(workspace, run_dir, *words)).value, looked]
    except SelfCheckError as error:
        return [str(error), looked]
    finally:
        loop.check_again = whole


def test_a_run_does_every_nth_step_again_and_ends_at_the_first_that_differs(pool, workspace, tmp_path):
    words = ["train.max_steps=6", "train.verify_every=2", "deterministic=true", "evaluate.forgetting=false"]
    for fault_at, looked in ((4, [2, 4]), (3, [2, 4, 6])):
        found = pool(2).run(
            train_and_verify,
            workspace=workspace,
            run_dir=str(tmp_path / str(fault_at)),
            words=words,
            fault_at=fault_at,
        )
        assert [steps for _, steps in found] == [looked, looked]
        for said, _ in found:
            assert "but step 4 differs on rank 1 (" in said if fault_at == 4 else said == "finished"


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_rank_that_computes_otherwise_when_a_micro_batch_is_done_again_is_named(
    pool, workspace, tmp_path, stage
):
    run = functools.partial(
        pool(2).run, verify_steps, workspace=workspace, run_dir=str(tmp_path), stage=stage
    )
    assert run(fault=None) == [["", 4], ["", 4]], "each of two micro-batches, twice"
    for fault, at, micro in (("forward", 2, 1), ("forward", 4, 2), ("weight", 4, 2)):
        if fault == "weight" and stage == 3:
            continue  # no rank holds a whole gradient of the last layer's weights
        (first, _), (second, _) = run(fault=fault, at=at)
        assert first == second and "step 1 differs on rank 1 (" in first and "rank 0" not in first
        assert f"of micro-batch {micro}" in first and f"of micro-batch {3 - micro}" not in first
        assert fault == "forward" or ("the loss" not in first and "mlp.up_proj.weight of" in first)
