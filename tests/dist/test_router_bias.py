"""Biases of routers move alike on every rank and stage, not in steps that fail, and are in checkpoint and export."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.dist.session import config_of, loader_of, session_of
from tests.dist.test_adapters import exported, train_twice
from tests.dist.test_mixtures import mixture  # noqa: F401

RATE = 0.01


def moved(mesh: Any, workspace: str, run_dir: str, variants: list[list[str]], poisoned: int = -1) -> Any:
    """Take three steps, one of which may fail; return the biases after each, and the tokens of experts of each."""
    from trainer.objective.causal_lm.cross_entropy import CausalLMObjective
    from trainer.run.again import check_again
    from trainer.run.step import train_step

    found = []
    for index, overrides in enumerate(variants):
        words = [f"train.router_bias_rate={RATE}", *overrides]
        with session_of(config_of(workspace, f"{run_dir}/{index}", *words)) as session:
            policy, loader = session.policy, loader_of(session)
            objective, engine = CausalLMObjective(loader.names), session.policy.engine
            before, steps, counts = policy.choice_bias.exact.tolist(), [], []
            move, forward = policy.choice_bias.adjust, engine.forward
            policy.choice_bias.adjust = functools.partial(told, move, counts)
            for step in range(3):
                engine.set_lr(1e-3)
                if step == poisoned and mesh.rank == mesh.num_ranks - 1:
                    engine.forward = functools.partial(broken, forward)
                if session.config.train.verify_every:
                    check_again(policy, objective, loader.read(step), step)
                train_step(policy, objective, loader.read(step), stop=lambda: False)
                engine.forward = forward
                steps.append(policy.choice_bias.exact.tolist())
            loader.close()
            held = [values.tolist() for values in policy.choice_bias.biases]
            found.append({"before": before, "steps": steps, "counts": counts, "held": held})
    return found


def told(move: Callable[..., None], counts: list[list[float]], tokens_E: list[float]) -> None:
    counts.append(tokens_E)
    move(tokens_E)


def broken(forward: Callable[..., Any], *arguments: Any, **inputs: Any) -> Any:
    return tuple(part * torch.nan for part in forward(*arguments, **inputs))


def by_hand(before: list[float], counts: list[list[float]]) -> torch.Tensor:
    values = torch.tensor(before)
    for tokens in counts:
        mean = sum(tokens) / len(tokens)
        values += RATE * torch.tensor([(mean > count) - (mean < count) for count in tokens]).float()
    return values


def test_biases_move_by_the_load_of_the_step_alike_on_ranks_stages_and_recomputed(
    pool: Any,
    workspace: str,
    mixture: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Ranks differ: a load of its own each. Stages differ: what is recomputed or gathered counts twice.

    So does what is done again to be compared.
    """
    variants = [[mixture, f"zero.stage={stage}"] for stage in (1, 2, 3)]
    variants.append([mixture, "zero.stage=3", "model.checkpoint_layers=-1", "train.micro_batch_size=2"])
    variants.append([mixture, "zero.stage=2", "train.verify_every=1"])
    arguments = {"workspace": workspace, "variants": variants}
    one = pool(1).run(moved, run_dir=str(tmp_path / "one"), **arguments)[0]
    two = pool(2).run(moved, run_dir=str(tmp_path / "two"), **arguments)
    assert two[0] == two[1]
    for found in [*one, *two[0]]:
        assert found == one[0]
    assert torch.equal(torch.tensor(one[0]["steps"][-1]), by_hand(one[0]["before"], one[0]["counts"]))
    assert one[0]["held"] == [one[0]["steps"][-1]]
    # The idle expert got no token, so its bias rose in each of three steps; two experts a token.
    assert all(tokens[3] == 0 and sum(tokens) % 2 == 0 and sum(tokens) > 0 for tokens in one[0]["counts"])


def test_a_step_that_fails_on_one_rank_moves_no_bias(
    pool: Any,
    workspace: str,
    mixture: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    variants = [[mixture, "zero.stage=2"]]
    found = pool(2).run(moved, workspace=workspace, run_dir=str(tmp_path), variants=variants, poisoned=1)
    assert found[0] == found[1]
    before, (first, second, third) = found[0][0]["before"], found[0][0]["steps"]
    assert before != first == second != third


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_biases_resume_bitwise_and_are_in_the_export(
    pool: Any,
    workspace: str,
    mixture: str,  # noqa: F811
    stage: int,
    tmp_path: Path,
) -> None:
    words = [mixture, f"zero.stage={stage}", f"train.router_bias_rate={RATE}"]
    pool(2).run(train_twice, workspace=workspace, folder=str(tmp_path), overrides=words)
    from tests.dist.test_resume import contents
    from trainer.checkpoint.layout import step_dir

    assert contents(step_dir(tmp_path / "whole", 6)) == contents(step_dir(tmp_path / "resumed", 6))
    code, apart, names, _, held = pool(1).run(exported, run_dir=str(tmp_path / "resumed"), merge=False)[0]
    assert code == 0 and apart < 0.02
    assert "choice_bias.exact" in held and "choice_bias.exact" not in names
    narrow = pool(1).run(biases_of_export, run_dir=str(tmp_path / "resumed"))[0]
    assert narrow["dtype"] == "torch.float32" and narrow["written"] == narrow["held"]
    assert narrow["other"] == "torch.bfloat16"


def biases_of_export(mesh: Any, run_dir: str) -> dict[str, Any]:
    """Export in bf16; return the biases of its files and of the checkpoint."""
    from safetensors.torch import load_file

    from trainer.checkpoint.layout import step_dir
    from trainer.checkpoint.shards import open_shards
    from trainer.command.export import export_model
    from trainer.config.store import load_config

    path = Path(run_dir)
    words = [f"run_dir={run_dir}", f"export.output_dir={path / 'narrow'}", "export.dtype=bfloat16"]
    export_model(load_config(path / "config.yaml", words))
    tensors: dict[str, Any] = {}
    for file in (path / "narrow").glob("*.safetensors"):
        tensors |= load_file(file)
    name = next(name for name in tensors if name.endswith("e_score_correction_bias"))
    held = open_shards(step_dir(path, 6)).buffer("choice_bias.exact")
    return {
        "dtype": str(tensors[name].dtype),
        "written": tensors[name].tolist(),
        "held": held.tolist(),
        "other": str(tensors["lm_head.weight"].dtype),
    }
