"""Losses of pairs of a run against plain torch, which reads the rows and neither stores nor packs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.dist.preferred import (
    BETA,
    FP32,
    NUM_STEPS,
    config_for,
    make_data,
    objective_of,
    overrides_of,
    take_steps,
    tokens_of,
)
from tests.dist.session import loader_of, plain_adamw, session_of
from tests.dist.test_zero import assert_close, cosine

LOSSES = {
    "dpo": {},
    "orpo": {"nll_over": "prompt_and_answer"},
    "ipo": {"nll_weight": 0.5, "nll_mean": "answers"},
    "simpo": {"gamma": 0.5, "nll_weight": 0.5},
}


@pytest.fixture(scope="module")
def data(pool: Any, workspace: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("preference"))
    pool(1).run(make_data, workspace=workspace, data=folder)
    return folder


def units_of_steps(session: Any) -> list[list[list[tuple[list[int], list[int]]]]]:
    """Return the documents of every unit of every step: (tokens, labels), as one rank would read them."""
    from trainer.dist.mesh import Axis

    loader, steps = loader_of(session, Axis(0, 1)), []
    for step in range(NUM_STEPS):
        units: list[list[tuple[list[int], list[int]]]] = []
        for micro in loader.read(step).micro_batches:
            found: dict[int, list[tuple[list[int], list[int]]]] = {}
            for segment in np.flatnonzero(micro.units_S >= 0).tolist():
                inside = micro.segments_BT == segment
                seen = int(micro.prefixes_S[segment])
                first = micro.tokens_BT[micro.segments_BT == micro.firsts_S[segment]][:seen]
                document = (
                    [*first.tolist(), *micro.tokens_BT[inside].tolist()],
                    [-100] * seen + micro.labels_BT[inside].tolist(),
                )
                found.setdefault(int(micro.units_S[segment]), []).append(document)
            units += found.values()
        steps.append(units)
    loader.close()
    return steps


def loss_of_pair(name: str, chosen: Any, rejected: Any, references: Any, options: dict[str, Any]) -> Any:
    """Return the loss of a pair, written anew."""
    c, j = chosen.sum(), rejected.sum()
    if name == "dpo":
        return torch.log1p(torch.exp(-BETA * ((c - references[0]) - (j - references[1]))))
    if name == "ipo":
        gap = (c - references[0]) / len(chosen) - (j - references[1]) / len(rejected)
        return (gap - 1 / (2 * BETA)) ** 2
    if name == "simpo":
        return torch.log1p(torch.exp(options["gamma"] - BETA * (chosen.mean() - rejected.mean())))
    odds = [mean - torch.log(1 - torch.exp(mean)) for mean in (chosen.mean(), rejected.mean())]
    return BETA * torch.log1p(torch.exp(odds[1] - odds[0]))


def by_torch(mesh: Any, workspace: str, data: str, run_dir: str) -> dict[str, list[dict[str, float]]]:
    """Train with nothing of ours but which units a step has: every document alone."""

    with session_of(config_for(workspace, data, run_dir)) as session:
        assert session.shares_prompts, "a pack holds a prompt twice"
        steps = units_of_steps(session)
    assert all({len(unit) for unit in units} == {1, 2} for units in steps), "a step has both pairs and texts"
    assert len({len(units) for units in steps}) > 1, "steps have as many units"
    return {name: torch_steps(workspace, steps, name, options) for name, options in LOSSES.items()}


def torch_steps(workspace: str, steps: Any, name: str, options: dict[str, Any]) -> list[dict[str, float]]:
    from transformers import AutoModelForCausalLM

    model, base = (
        AutoModelForCausalLM.from_pretrained(Path(workspace) / "model", dtype=torch.float32) for _ in range(2)
    )
    optimizer = plain_adamw(model)
    weight = options.get("nll_weight", 1.0 if name == "orpo" else 0.0)
    over, mean = options.get("nll_over", "answer"), options.get("nll_mean", "tokens")
    records = []
    for step, units in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * ((step + 1) / 2 if step < 2 else cosine((step - 2) / (NUM_STEPS - 2), 0.1))
        pairs, texts = ([unit for unit in units if len(unit) == count] for count in (2, 1))
        losses, nlls = [], []
        for unit in pairs:
            chosen, rejected = (tokens_of(model, document) for document in unit)
            with torch.no_grad():
                references = [tokens_of(base, document).sum() for document in unit]
            losses.append(loss_of_pair(name, chosen, rejected, references, options))
            nlls.append(-tokens_of(model, unit[0], over))
        loss = torch.stack(losses).mean()
        nll = torch.cat(nlls).mean() if mean == "tokens" else torch.stack([n.mean() for n in nlls]).mean()
        text = -torch.cat([tokens_of(model, unit[0]) for unit in texts]).mean()
        whole = loss + weight * nll + 0.5 * text
        whole.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found = {"loss": float(whole), "pair_loss": float(loss), "loss/text": float(text)}
        found["grad_norm"] = float(norm)
        records.append(found | ({"nll_chosen": float(nll)} if weight else {}))
    return records


def trained(mesh: Any, workspace: str, data: str, run_dir: str, variants: list[Any]) -> Any:
    found = []
    for index, (name, overrides) in enumerate(variants):
        words = [*overrides_of(name, **LOSSES[name]), *overrides]
        with session_of(config_for(workspace, data, f"{run_dir}/{index}", *words)) as session:
            found.append(take_steps(session, objective_of(session)))
    return found


@pytest.fixture(scope="module")
def expected(pool: Any, workspace: str, data: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    run_dir = str(tmp_path_factory.mktemp("plain"))
    return pool(1).run(by_torch, workspace=workspace, data=data, run_dir=run_dir)[0]


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_steps_of_pairs_are_those_of_plain_torch_at_every_stage(
    pool, workspace, data, expected, num_ranks, tmp_path
):
    """One alone off: a count is not that of all ranks and micro-batches, or a pair's reference is another pair's."""
    variants = [
        (name, [f"zero.stage={stage}", f"train.micro_batch_size={1 + stage % 2}"])
        for stage, name in enumerate(LOSSES)
    ]
    answers = pool(num_ranks).run(
        trained, workspace=workspace, data=data, run_dir=str(tmp_path), variants=variants
    )
    for answer in answers:
        for (name, _), records in zip(variants, answer, strict=True):
            reports = [record.pop("all") for record in records]
            assert_close(records, expected[name], FP32, 10 * FP32)
            for record, wanted in zip(records, expected[name], strict=True):
                assert record == pytest.approx(wanted, rel=10 * FP32)
            if name == "dpo":
                assert reports[0]["pair_loss"] == pytest.approx(0.6931471805599453, abs=1e-6)
                assert reports[0]["reward_chosen"] == pytest.approx(0, abs=1e-5)
            assert all(0 <= report["preference_accuracy"] <= 1 for report in reports)


@pytest.mark.slow
def test_one_two_and_three_ranks_take_the_same_steps_of_pairs(pool, workspace, data, tmp_path):
    steps = []
    for num_ranks in (1, 2, 3):
        variants = [
            (name, ["train.global_batch_tokens=768", f"train.micro_batch_size={size}", f"zero.stage={size}"])
            for size, name in ((1, "dpo"), (2, "ipo"))
        ]
        run_dir = str(tmp_path / str(num_ranks))
        steps.append(
            pool(num_ranks).run(trained, workspace=workspace, data=data, run_dir=run_dir, variants=variants)[
                0
            ]
        )
    for more in steps[1:]:
        for records, wanted in zip(more, steps[0], strict=True):
            for record, one in zip(records, wanted, strict=True):
                assert record.pop("all") == pytest.approx(one["all"], rel=1e-4, abs=1e-5)
                assert record == pytest.approx({key: one[key] for key in record}, rel=10 * FP32)


def filled_up(mesh: Any, workspace: str, data: str, run_dir: str) -> Any:
    """Return the losses of a pack of pairs, with and without one beside it that only fills up."""
    from trainer.data.pack.refs import FILLER, PackRef, read_batch
    from trainer.objective.contract import Sums

    found: dict[str, list[list[float]]] = {}
    for name, options in LOSSES.items():
        words = overrides_of(name, **options)
        with session_of(config_for(workspace, data, f"{run_dir}/{name}", *words)) as session:
            stores = [store.train for store in session.stores.values()]
            objective = objective_of(session)
            first, second = (PackRef(0, pack, 0) for pack in session.mixing().to_draw([0])[0][:2].tolist())
            for refs in ([first], [first, FILLER], [FILLER]):
                micro = read_batch(stores, refs, session.pad_id, second)
                micro.attached = objective.attach(micro, [second if ref is FILLER else ref for ref in refs])
                parts = objective.terms(session.policy, micro, Sums(objective.sum_names, mesh.device))
                assert all(part.loss_sum.requires_grad for part in parts)
                found.setdefault(name, []).append([float(part.loss_sum) for part in parts])
    return found


def test_a_pack_that_fills_up_adds_nothing_and_still_has_a_gradient(pool, workspace, data, tmp_path):
    answer = pool(1).run(filled_up, workspace=workspace, data=data, run_dir=str(tmp_path))[0]
    for name, (alone, beside, nothing) in answer.items():
        assert beside == pytest.approx(alone, rel=FP32), name
        assert nothing == [0.0] * len(nothing), name


def whole_run(mesh: Any, workspace: str, data: str, run_dir: str) -> None:
    from trainer.run import training

    config = config_for(workspace, data, run_dir, "objective.preference.loss=orpo", "zero.stage=2")
    assert training.run_training(config).value == "finished"


def test_a_run_of_pairs_trains_saves_and_reports(pool, workspace, data, tmp_path):
    pool(2).run(whole_run, workspace=workspace, data=data, run_dir=str(tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "loss" in line]
    assert len(losses) == NUM_STEPS
    assert all(
        {"loss/text", "nll_chosen", "preference_accuracy", "reward_chosen"} <= set(line) for line in losses
    )
    assert (tmp_path / "report.html").is_file() and (tmp_path / "checkpoints" / "step-00000004").is_dir()
