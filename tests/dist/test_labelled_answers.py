"""Losses of answers with labels: steps of a run against plain torch, and twenty of them against TRL."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.dist.preferred import (
    BETA,
    FP32,
    NUM_STEPS,
    config_beside_texts,
    objective_of,
    said,
    take_steps,
    tokens_of,
    write_rows,
    write_texts,
)
from tests.dist.session import config_of, plain_adamw, session_of
from tests.dist.test_trl import by_trl, options_of_trl
from tests.dist.test_zero import assert_close, cosine

LOSSES = ("kto", "apo_zero_unpaired")
WEIGHT = 1.3


def config_for(workspace: str, data: str, run_dir: str | Path, loss: str, *overrides: str) -> Any:
    words = [
        f"objective.preference.loss={loss}",
        f"objective.preference.beta={BETA}",
        f"objective.preference.desirable_weight={WEIGHT}",
        "objective.preference.text_weight=0.5",
    ]
    return config_beside_texts(workspace, data, run_dir, "unpaired", "answers.jsonl", *words, *overrides)


def make_data(mesh: Any, workspace: str, data: str) -> None:
    from trainer.command.prepare import prepare_data

    rng = np.random.default_rng(5)
    answers = [
        {
            "prompt": f"{said(rng, 2, 6)}?",
            "completion": f"{said(rng, 1, 12)}.",
            "label": bool(rng.random() < 0.6),
        }
        for _ in range(120)
    ]
    write_rows(Path(data) / "answers.jsonl", answers)
    write_texts(Path(data), rng)
    prepare_data(config_for(workspace, data, Path(data) / "unused", "kto"))


@pytest.fixture(scope="module")
def data(pool: Any, workspace: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("answers"))
    pool(1).run(make_data, workspace=workspace, data=folder)
    return folder


def packs_of_steps(session: Any) -> list[list[tuple[bool, list[Any]]]]:
    """Return of every step the packs as (of answers, its pieces: prompt, answer, label)."""
    stores, plan = [store.train for store in session.stores.values()], session.mixing().plan
    steps = []
    for step in range(NUM_STEPS):
        packs = []
        for ref in plan.packs_of_step(step):
            packs.append((ref.source == 0, pieces_of(stores[ref.source].pack(ref.pack))))
        steps.append(packs)
    return steps


def pieces_of(pack: Any) -> list[tuple[list[int], list[int], float]]:
    """Return prompt, answer and label of each piece of a pack; of texts the first is what is not learnt."""
    start, pieces = 0, []
    for length in pack.lengths:
        part = slice(start, start + length)
        tokens, marks = pack.tokens[part].tolist(), pack.supervised[part].tolist()
        begin = marks.index(True)
        pieces.append((tokens[:begin], tokens[begin:], float(pack.values["label"][part].sum())))
        start += length
    return pieces


def log_probs(model: Any, prompt: list[int], answer: list[int]) -> Any:
    labels = [*([-100] * (len(prompt) - 1)), *answer, -100] if prompt else [*answer[1:], -100]
    return tokens_of(model, ([*prompt, *answer], labels))


def by_torch(mesh: Any, workspace: str, data: str, run_dir: str) -> dict[str, list[dict[str, float]]]:
    with session_of(config_for(workspace, data, run_dir, "kto")) as session:
        steps = packs_of_steps(session)
    return {loss: torch_steps(workspace, steps, loss) for loss in LOSSES}


def torch_steps(workspace: str, steps: Any, loss: str) -> list[dict[str, float]]:
    """Train with nothing of ours but which packs a step has: every piece alone."""
    from transformers import AutoModelForCausalLM

    path = Path(workspace) / "model"
    model, base = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for _ in range(2))
    optimizer, records = plain_adamw(model), []

    def ratio(prompt: list[int], answer: list[int]) -> Any:
        with torch.no_grad():
            before = log_probs(base, prompt, answer).sum()
        return log_probs(model, prompt, answer).sum() - before

    for step, packs in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * ((step + 1) / 2 if step < 2 else cosine((step - 2) / (NUM_STEPS - 2), 0.1))
        strange, losses, texts = [], [], []
        for is_answers, pieces in packs:
            if not is_answers:
                texts += [log_probs(model, [], tokens) for _, tokens, _ in pieces]
                continue
            with torch.no_grad():
                strange += [
                    ratio(prompt, other)
                    for (prompt, _, _), (asked, other, _) in zip(
                        pieces, [pieces[-1], *pieces[:-1]], strict=True
                    )
                    if prompt != asked
                ]
        point = torch.stack(strange).mean().clamp(min=0) if loss == "kto" else 0.0
        for pieces in [pieces for is_answers, pieces in packs if is_answers]:
            for prompt, answer, label in pieces:
                beyond = BETA * (ratio(prompt, answer) - point)
                liked, not_liked = WEIGHT * (1 - torch.sigmoid(beyond)), 1 - torch.sigmoid(-beyond)
                losses.append(liked if label > 0 else not_liked)
        found, text = torch.stack(losses).mean(), -torch.cat(texts).mean()
        whole = found + 0.5 * text
        whole.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        records.append({"loss": float(whole), "answer_loss": float(found), "loss/text": float(text)})
        records[-1]["grad_norm"] = float(norm)
        if loss == "kto":
            records[-1]["reference_point"] = float(point)
    return records


def trained(mesh: Any, workspace: str, data: str, run_dir: str, variants: list[Any]) -> Any:
    found = []
    for index, (loss, words) in enumerate(variants):
        with session_of(config_for(workspace, data, f"{run_dir}/{index}", loss, *words)) as session:
            records = take_steps(session, objective_of(session))
            for record in records:
                report = record.pop("all")
                record |= {key: report[key] for key in ("reference_point",) if key in report}
            found.append(records)
    return found


@pytest.fixture(scope="module")
def expected(pool: Any, workspace: str, data: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    run_dir = str(tmp_path_factory.mktemp("plain"))
    return pool(1).run(by_torch, workspace=workspace, data=data, run_dir=run_dir)[0]


@pytest.mark.parametrize("num_ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_steps_of_labelled_answers_are_those_of_plain_torch_at_every_stage(
    pool, workspace, data, expected, num_ranks, tmp_path
):
    """Other losses at two ranks or two packs at once only: the point is that of a micro-batch or of a rank."""
    variants = [
        (loss, [f"zero.stage={stage}", f"train.micro_batch_size={1 + stage % 2}"])
        for stage, loss in ((0, "kto"), (1, "kto"), (3, "kto"), (2, "apo_zero_unpaired"))
    ]
    answers = pool(num_ranks).run(
        trained, workspace=workspace, data=data, run_dir=str(tmp_path), variants=variants
    )
    assert max(record["reference_point"] for record in expected["kto"]) > 1e-3, "the point is never beyond 0"
    for answer in answers:
        for (loss, _), records in zip(variants, answer, strict=True):
            assert_close(records, expected[loss], FP32, 10 * FP32)
            for record, wanted in zip(records, expected[loss], strict=True):
                assert record == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def whole_run(mesh: Any, workspace: str, data: str, run_dir: str) -> None:
    from trainer.command.evaluate import run_evaluation
    from trainer.run import training

    config = config_for(workspace, data, run_dir, "kto", "zero.stage=2", "log.every_steps=1")
    assert training.run_training(config).value == "finished"
    assert run_evaluation(config)


def test_a_run_of_labelled_answers_trains_saves_and_reports(pool, workspace, data, tmp_path):
    pool(2).run(whole_run, workspace=workspace, data=data, run_dir=str(tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "loss" in line]
    assert len(losses) == NUM_STEPS and losses[0]["reference_point"] == pytest.approx(0, abs=1e-5)
    evaluated = [line for line in lines if "eval_answer_loss/chat" in line]
    assert evaluated[0]["eval_answer_loss/chat"] < 0.6 < 3 < evaluated[0]["eval/chat"]
    assert {"reward_desirable", "reward_undesirable", "loss/text", "log_prob_desirable_token"} <= set(
        losses[-1]
    )
    judged = json.loads((tmp_path / "evaluation.json").read_text())["answers"]["chat"]
    for key, logged in (
        ("loss", "eval_answer_loss/chat"),
        ("point", "eval_reference_point"),
        ("reward_desirable", "eval_reward_desirable/chat"),
    ):
        assert judged[key] == pytest.approx(evaluated[-1][logged], rel=1e-5), "after training as in it"
    sets = json.loads((tmp_path / "forgetting.json").read_text())["sets"]
    assert {one["name"]: one["num_documents"] for one in sets}["chat"] < 21, (
        "desirable answers of those held out"
    )
    assert (tmp_path / "report.html").is_file() and (tmp_path / "checkpoints" / "step-00000004").is_dir()
    log = (tmp_path / "logs" / "attempt-1" / "rank-0.log").read_text()
    said = re.search(r"point of reference on (\d+) of \d+ answers, and on (\d+) of (\d+) held out", log)
    assert (
        int(said[1]) > 0
        and 0 < int(said[2]) <= int(said[3]) == judged["num_desirable"] + judged["num_undesirable"]
    )
    assert f"Held-out answers of chat: loss {judged['loss']:.4f}, point of reference " in log


def judged_after_training(mesh: Any, workspace: str, data: str, run_dir: str) -> list[dict[str, float]]:
    """Train, and return what is said of held-out answers, and what plain torch makes of the same weights."""
    from transformers import AutoModelForCausalLM

    from trainer.checkpoint.state import TrainState
    from trainer.run.evaluator import build_evaluator
    from trainer.run.references import build_references

    with session_of(config_for(workspace, data, run_dir, "kto", "zero.stage=0")) as session:
        mixing = session.mixing()
        evaluator = build_evaluator(session, mixing, session.heed, build_references(session, mixing))
        take_steps(session, objective_of(session))
        losses = evaluator.evaluate(TrainState(step=NUM_STEPS))
        said = {"eval_mean": evaluator.mean(losses), **losses} | evaluator.preferences(
            TrainState(step=NUM_STEPS)
        )
        weights = session.policy.module.lm.state_dict()
        model, base = (
            AutoModelForCausalLM.from_pretrained(Path(workspace) / "model", dtype=torch.float32)
            for _ in range(2)
        )
        model.load_state_dict(weights)
        store = session.stores["chat"].validation
        packs = [store.pack(index) for index in range(store.num_packs)]

    def ratio(prompt: list[int], answer: list[int]) -> float:
        with torch.no_grad():
            return float(log_probs(model, prompt, answer).sum() - log_probs(base, prompt, answer).sum())

    pieces = [pieces_of(pack) for pack in packs]
    strange = [
        ratio(prompt, other)
        for found in pieces
        for (prompt, _, _), (asked, other, _) in zip(found, [found[-1], *found[:-1]], strict=True)
        if prompt != asked
    ]
    point = max(float(np.mean(strange)), 0.0)
    taken: dict[bool, list[float]] = {True: [], False: []}
    for prompt, answer, label in [one for found in pieces for one in found]:
        taken[label > 0].append(ratio(prompt, answer))
    liked, other = (np.array(taken[side]) for side in (True, False))
    losses_A = [
        *(WEIGHT * (1 - 1 / (1 + np.exp(-BETA * (liked - point))))),
        *(1 - 1 / (1 + np.exp(BETA * (other - point)))),
    ]
    found = float(np.mean(losses_A))
    wanted = {
        "eval_answer_loss/chat": found,
        "eval_reference_point": point,
        "eval_reward_desirable/chat": BETA * float(liked.mean()),
        "eval_reward_undesirable/chat": BETA * float(other.mean()),
        "eval_mean": found + 0.5 * losses["text"],
    }
    return [said, wanted, {"point": point}]


def test_held_out_answers_of_both_labels_are_judged_by_the_loss_that_is_minimised(
    pool, workspace, data, tmp_path
):
    """`eval_mean`, by which the best checkpoint is chosen, was the cross-entropy of desirable answers."""
    answers = pool(2).run(judged_after_training, workspace=workspace, data=data, run_dir=str(tmp_path))
    for judged, wanted, measured in answers:
        assert measured["point"] > 1e-4, "the point is not beyond 0"
        assert {name: judged[name] for name in wanted} == pytest.approx(wanted, rel=1e-4, abs=1e-6)
        assert judged["eval_mean"] != pytest.approx(judged["chat"], rel=0.1), (
            "the cross-entropy has its own name"
        )


TRL_STEPS = 20


def write_answers(path: Path) -> None:
    """Write answers of 16 tokens with their prompt and end, four of which fill a pack of 64: one step on both sides."""
    rng = np.random.default_rng(11)
    rows = []
    for index in range(4 * TRL_STEPS):
        asked = int(rng.integers(3, 9))
        prompt, answer = ("".join(rng.choice(list("abcdefghij"), count)) for count in (asked, 13 - asked))
        rows.append({"prompt": f"{prompt}?", "completion": f"{answer}.", "label": index % 3 != 1})
    write_rows(path, rows)


def ours(mesh: Any, workspace: str, folder: str) -> dict[str, list[dict[str, float]]]:
    from trainer.command.prepare import ensure_inputs

    words = [
        "data.shuffle=false",
        "data.validation_frac=0",
        "~data.sources.text",
        "data.sources.chat.format=unpaired",
        "data.sources.chat.columns.loss_mask=null",
        f"data.sources.chat.path={folder}/answers.jsonl",
        f"data.cache_dir={folder}/cache",
        "objective.kind=preference",
        f"objective.preference.beta={BETA}",
        f"objective.preference.desirable_weight={WEIGHT}",
        "data.values=[label]",
        "train.global_batch_tokens=64",
        "train.micro_batch_size=1",
        f"train.max_steps={TRL_STEPS}",
        "schedule.name=constant",
        "schedule.warmup_steps=0",
        "optim.decay_embeddings=true",
        "zero.stage=0",
    ]
    found = {}
    for loss in LOSSES:
        config = config_of(workspace, f"{folder}/{loss}", *words, f"objective.preference.loss={loss}")
        ensure_inputs(config)
        with session_of(config) as session:
            assert session.stores["chat"].train.pack_units.tolist() == [4] * TRL_STEPS
            found[loss] = [
                record | record.pop("all") for record in take_steps(session, objective_of(session), TRL_STEPS)
            ]
    return found


def train_with_trl(model: Path, answers: Path, output: Path) -> None:
    """Train with TRL in this process and write what it reports of every step, for every loss."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import KTOConfig, KTOTrainer

    dataset = Dataset.from_list([json.loads(line) for line in answers.read_text().splitlines()])
    found = {}
    for loss in LOSSES:
        options = KTOConfig(
            **options_of_trl(output, TRL_STEPS),
            per_device_train_batch_size=4,
            beta=BETA,
            desirable_weight=WEIGHT,
            undesirable_weight=1.0,
            loss_type=loss,
            max_length=None,
        )
        models = [AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32) for _ in range(2)]
        trainer = KTOTrainer(
            *models, options, train_dataset=dataset, processing_class=AutoTokenizer.from_pretrained(model)
        )
        trainer.train()
        history = [record for record in trainer.state.log_history if "loss" in record]
        found[loss] = [{key: float(value) for key, value in record.items()} for record in history]
    output.write_text(json.dumps(found))


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed: extra `test`")
@pytest.mark.slow
def test_twenty_steps_of_labelled_answers_equal_those_of_trl(pool, workspace, tmp_path):
    answers, output = tmp_path / "answers.jsonl", tmp_path / "trl.json"
    write_answers(answers)
    expected = by_trl("test_labelled_answers", workspace, answers, output)
    actual = pool(1).run(ours, workspace=workspace, folder=str(tmp_path))[0]
    for loss in LOSSES:
        a, e = actual[loss], expected[loss]
        assert len(a) == len(e) == TRL_STEPS
        losses, norms = (
            [abs(x[key] - y[key]) / max(abs(y[key]), 0.1) for x, y in zip(a, e, strict=True)]
            for key in ("loss", "grad_norm")
        )
        print(f"{loss}: largest difference: loss {max(losses):.2e}, gradient norm {max(norms):.2e}")
        assert max(losses) <= 1e-5 and max(norms) <= 1e-5, loss
