"""Routers in float32 while the rest trains in bf16: sharded, recomputed, adapted, and beside spread experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.dist.session import config_of, session_of, take_steps
from tests.dist.test_expert_parallel import save_mixture
from tests.dist.test_zero import BF16_LOSS, BF16_NORM, assert_close

BF16 = "zero.dtype=bf16"
LORA = ["tune.method=lora", "tune.r=4"]


def observed(mesh: Any, workspace: str, run_dir: str, variants: list[list[str]]) -> list[dict[str, Any]]:
    """Prove the gradient, take steps, and return what routers multiplied in, what was said, and the steps."""
    from trainer.model.exact_routers import is_exact
    from trainer.run.proofs import prove_gradient

    found = []
    for index, words in enumerate(variants):
        folder = f"{run_dir}/{index}"
        with session_of(config_of(workspace, folder, *words)) as session:
            routers = [m for m in session.policy.module.modules() if is_exact(m)]
            apart = prove_gradient(session)
            steps = take_steps(session, 2)
            (log,) = Path(folder).glob("logs/**/rank-0*.log")
            found.append({"routers": len(routers), "apart": apart, "steps": steps, "log": log.read_text()})
    return found


def told(pool: Any, workspace: Any, tmp_path: Path, variants: list[list[str]]) -> list[dict[str, Any]]:
    both: list[Any] = pool(2).run(
        observed, workspace=workspace, run_dir=str(tmp_path / "runs"), variants=variants
    )
    assert [run["steps"] for run in both[0]] == [run["steps"] for run in both[1]]
    for words, run in zip(variants, both[0], strict=True):
        print(words, run["routers"], run["apart"], run["steps"])
        assert run["apart"] <= 2.0**-4, words
    return list(both[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "num_routers"),
    [("AFMoE (Trinity)", 1), ("JetMoE", 4)],
)
def test_routers_in_float32_train_sharded_recomputed_and_adapted(
    pool, workspace, tmp_path, family, num_routers
):
    """Routers of both are modules with a linear layer in them, which ZeRO-3 gathers and LoRA adapts."""
    pool(1).run(save_mixture, folder=str(tmp_path / "base"), family=family)
    base = [f"model.path={tmp_path / 'base'}", BF16, "model.checkpoint_layers=0"]
    again = f"model.checkpoint_layers={0 if family == 'JetMoE' else -1}"  # its class does not recompute
    whole, sharded, switched_off, adapter, sharded_adapter, packed = told(
        pool,
        workspace,
        tmp_path,
        [
            [*base, "zero.stage=1"],
            [*base, "zero.stage=3", again],
            [*base, "zero.stage=1", "model.router_float32=false"],
            [*base, *LORA, "zero.stage=1"],
            [*base, *LORA, "zero.stage=3", again],
            [*base, *LORA, "zero.stage=1", "tune.quantise=nf4"],
        ],
    )
    for one, other in ((sharded, whole), (sharded_adapter, adapter)):
        assert_close(one["steps"], other["steps"], 4 * BF16_LOSS, 4 * BF16_NORM)
        said = f"choose in float32, with weights in bf16: {num_routers} (model.router_float32)"
        assert one["routers"] == num_routers and said in one["log"]
    assert packed["routers"] == 0, "their linear layers are in 4 bits"
    assert not switched_off["routers"] and "Routers compute as the model's own code" in switched_off["log"]


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_routers_of_spread_experts_are_as_those_of_the_model(pool, workspace, tmp_path, stage):
    pool(1).run(save_mixture, folder=str(tmp_path / "base"), family="Qwen3-MoE")
    spread = [f"model.path={tmp_path / 'base'}", BF16, "zero.expert_parallel=2", f"zero.stage={stage}"]
    exact, plain = told(pool, workspace, tmp_path, [spread, [*spread, "model.router_float32=false"]])
    assert exact["routers"] == 2 and not plain["routers"]
