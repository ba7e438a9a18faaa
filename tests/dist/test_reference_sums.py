"""The reference of a loss of pairs: the model before its first step, asked once, kept, and asked anew where stale."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.dist.preferred import config_for, make_data, overrides_of, references_of
from tests.dist.session import session_of
from trainer.checkpoint.layout import STATE, step_dir

LN_2 = 0.6931471805599453
NUM_STEPS = 4
CLOSE = 2e-5
"""Nats of an answer, in float32: attention and head add up in another order in a pack."""
LORA = ("tune.method=lora", "tune.r=4")


@pytest.fixture(scope="module")
def data(pool: Any, workspace: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("references"))
    pool(1).run(make_data, workspace=workspace, data=folder)
    return folder


def kept(data: str) -> list[Path]:
    return sorted((Path(data) / "cache" / "answer_sums").glob("[!.]*"))


def forget(mesh: Any, data: str) -> None:
    mesh.barrier()
    if mesh.is_first:
        shutil.rmtree(Path(data) / "cache" / "answer_sums", ignore_errors=True)
    mesh.barrier()


def dpo(workspace: str, data: str, run_dir: str | Path, *words: str) -> Any:
    return config_for(workspace, data, run_dir, *overrides_of("dpo"), *words)


def sums_and_lines(session: Any) -> tuple[Any, list[str]]:
    """Return the training sums of a session's reference by pack, what was asked of the model, and what was said."""
    from trainer.data.pack.refs import PackRef
    from trainer.run.references import build_references
    from trainer.teacher import start_answers

    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    start_answers._LOG.addHandler(handler)
    try:
        found = build_references(session, session.mixing())
    finally:
        start_answers._LOG.removeHandler(handler)
    packs = session.mixing().to_draw([0])[0].tolist()
    refs = [PackRef(0, pack, 0) for pack in packs]
    return (found.train, refs), lines


def second_and_off(mesh: Any, workspace: str, data: str, run_dir: str, words: list[str]) -> Any:
    """Return how far the reference is from a second model, and from this one with the adapter off."""
    from trainer.model.tune.adapters import adapter_off

    forget(mesh, data)
    with session_of(dpo(workspace, data, run_dir, *words)) as session:
        (sums, refs), _ = sums_and_lines(session)
        ours = sums.of(refs)
        forget(mesh, data)
        with adapter_off(session.policy.module):
            (without, _), _ = sums_and_lines(session)
        return [
            len(ours),
            float(np.abs(ours - references_of(f"{workspace}/model", session)(refs)).max()),
            float(np.abs(ours - without.of(refs)).max()),
        ]


@pytest.mark.parametrize(
    ("num_ranks", "words"),
    [
        (1, ["zero.stage=0"]),
        (2, ["zero.stage=3", "evaluate.micro_batch_size=3"]),
        (2, ["zero.stage=1", *LORA]),
        pytest.param(1, ["zero.stage=3", *LORA], marks=pytest.mark.slow),
        pytest.param(3, ["zero.stage=2", "train.global_batch_tokens=192"], marks=pytest.mark.slow),
    ],
)
def test_the_reference_is_a_second_model_and_the_adapter_off(
    pool, workspace, data, num_ranks, words, tmp_path
):
    for answers, second, off in pool(num_ranks).run(
        second_and_off, workspace=workspace, data=data, run_dir=str(tmp_path), words=words
    ):
        assert answers > 20 and second < CLOSE and off == 0


def again(mesh: Any, workspace: str, data: str, run_dir: str) -> dict[str, Any]:
    """Open the reference when it is new, known, damaged, not true, and of other pairs; say what was asked and said."""
    from trainer.teacher import start_answers
    from trainer.teacher.answer_sums import SUMS, read_sums, write_sums

    forget(mesh, data)
    found: dict[str, Any] = {}
    with session_of(dpo(workspace, data, run_dir)) as session:
        read = start_answers.read_batch
        asked: list[int] = []

        def counting(stores: Any, refs: Any, pad_id: int) -> Any:
            asked.append(sum(ref.source >= 0 for ref in refs))
            return read(stores, refs, pad_id)

        start_answers.read_batch, start_answers.NUM_SAMPLED = counting, 2

        def attempt(name: str) -> Any:
            asked.clear()
            (sums, refs), lines = sums_and_lines(session)
            found[name] = [sum(asked), lines, sums.of(refs).tolist()]
            mesh.barrier()

        attempt("new")
        attempt("known")
        (folder,) = kept(data)
        count = (folder / SUMS).stat().st_size // 8
        mesh.barrier()
        if mesh.is_first:
            whole = (folder / SUMS).read_bytes()
            (folder / SUMS).write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        mesh.barrier()
        attempt("damaged")
        if mesh.is_first:
            sums = read_sums(folder, count)
            write_sums(folder, sums - 0.5, {"version": 1})
        mesh.barrier()
        attempt("untrue")
        start_answers.read_batch, start_answers.NUM_SAMPLED = read, 8
    assert kept(data) == [folder]
    with session_of(dpo(workspace, data, run_dir, "train.max_steps=1")) as session:
        sums_and_lines(session)
    found["folders"] = len(kept(data))
    mesh.barrier()
    return found


def test_what_is_known_is_asked_about_a_sample_and_what_is_stale_about_all(pool, workspace, data, tmp_path):
    answers = pool(2).run(again, workspace=workspace, data=data, run_dir=str(tmp_path))
    assert "is damaged (" in answers[0]["damaged"][1][0]
    for found in answers:
        (num_new, lines_new, new), (num_known, lines_known, known) = found["new"], found["known"]
        assert "Asking the model, as it is before the first step" in lines_new[0]
        assert num_known < num_new / 2 and "asked again about" in lines_known[0]
        assert known == new, "the numbers that are kept are those that were used"
        num_damaged, _, damaged = found["damaged"]
        assert num_damaged == num_new and damaged == new
        num_untrue, lines_untrue, untrue = found["untrue"]
        assert num_untrue > num_new and untrue == new
        assert "is not what the model says before the first step" in lines_untrue[0]
        assert found["folders"] == 2, "a run that draws other packs has a reference of its own"


def train(
    mesh: Any, workspace: str, data: str, run_dir: str, copy_from: str | None, words: list[str]
) -> None:
    from trainer.run import training

    if copy_from and mesh.is_first:
        shutil.copytree(step_dir(Path(copy_from), 2), step_dir(Path(run_dir), 2))
    mesh.barrier()
    config = dpo(workspace, data, run_dir, "checkpoint.every_steps=2", *words)
    assert training.run_training(config).value == "finished"


def evaluated(mesh: Any, workspace: str, data: str, run_dir: str, words: list[str]) -> None:
    from trainer.command.evaluate import run_evaluation

    assert run_evaluation(dpo(workspace, data, run_dir, "checkpoint.every_steps=2", *words))


def rows(run_dir: Path) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    keys = (
        "loss",
        "pair_loss",
        "loss/text",
        "grad_norm",
        "reward_chosen",
        "reward_rejected",
        "log_prob_chosen",
    )
    return {line["step"]: {key: line[key] for key in keys} for line in lines if "loss" in line}


@pytest.mark.parametrize(
    ("stage", "more"),
    [
        pytest.param(3, [], marks=pytest.mark.slow),
        (1, list(LORA)),
        *(
            pytest.param(stage, words, marks=pytest.mark.slow)
            for stage, words in (
                (2, ["zero.dtype=bf16"]),
                (0, [*LORA, "tune.dora=true"]),
                (2, [*LORA, "tune.quantise=nf4"]),
                (1, [*LORA, "tune.init=pissa"]),
                (3, ["tune.method=prefix"]),
            )
        ),
    ],
    ids=["full", "lora", "bf16", "dora", "qlora", "pissa", "prefix"],
)
def test_a_run_begins_at_ln_2_and_a_resumed_one_is_bitwise_the_same(
    pool, workspace, data, stage, more, tmp_path
):
    """Others only where the reference is lost: the tuned weights of the checkpoint were taken for the reference."""
    shutil.rmtree(Path(data) / "cache" / "answer_sums", ignore_errors=True)
    whole, goes_on, lost = (tmp_path / name for name in ("whole", "goes_on", "lost"))
    arguments = {"workspace": workspace, "data": data, "words": [f"zero.stage={stage}", *more]}
    pool(2).run(train, run_dir=str(whole), copy_from=None, **arguments)
    (folder,) = kept(data)
    sums = (folder / "sums.bin").read_bytes()
    pool(2).run(train, run_dir=str(goes_on), copy_from=str(whole), **arguments)
    shutil.rmtree(folder)
    pool(2).run(train, run_dir=str(lost), copy_from=str(whole), **arguments)
    assert kept(data) == [folder] and (folder / "sums.bin").read_bytes() == sums
    is_exact = "zero.dtype=bf16" not in more
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    before, *_, after = [line for line in lines if "eval_mean" in line]
    assert before["eval_pair_loss/chat"] == pytest.approx(LN_2, abs=CLOSE if is_exact else 1e-2)
    assert "eval_accuracy/chat" not in before
    assert 0 <= after["eval_accuracy_low/chat"] < after["eval_accuracy_high/chat"] <= 1
    mean = after["eval_pair_loss/chat"] + 0.5 * after["eval/text"]
    assert after["eval_mean"] == pytest.approx(mean) and after["eval/chat"] != after["eval_pair_loss/chat"]
    pool(2).run(evaluated, run_dir=str(whole), **arguments)
    kept_pairs = json.loads((whole / "evaluation.json").read_text())["pairs"]["chat"]
    for key, logged in (("loss", "pair_loss"), ("accuracy", "accuracy"), ("margin", "margin")):
        assert kept_pairs[key] == pytest.approx(after[f"eval_{logged}/chat"], rel=1e-5), (
            "after training as in it"
        )
    wanted = rows(whole)
    begins_as_base = "tune.method=prefix" not in more  # virtual tokens begin at random
    assert (wanted[1]["pair_loss"] == pytest.approx(LN_2, abs=1e-6 if is_exact else 1e-2)) == begins_as_base
    assert wanted[NUM_STEPS]["pair_loss"] != pytest.approx(LN_2, abs=1e-4)
    for resumed in (goes_on, lost):
        assert rows(resumed) == {step: wanted[step] for step in (3, 4)}
    states = [json.loads((step_dir(run_dir, 4) / STATE).read_text()) for run_dir in (whole, goes_on, lost)]
    for state in states:
        del state["attempts"]
    assert states[0] == states[1] == states[2]


def ranked(mesh: Any, workspace: str, data: str, run_dir: str, words: list[str]) -> dict[str, Any]:
    """Train, rank held-out pairs as a run does, and with plain models that read the rows alone; one rank."""
    import torch
    from transformers import AutoModelForCausalLM

    from tests.dist.preferred import BETA, objective_of, take_steps, tokens_of
    from trainer.evaluate.held_out import held_out_losses
    from trainer.run.held_out_pairs import held_out_pairs
    from trainer.run.references import build_references

    with session_of(dpo(workspace, data, run_dir, *words)) as session:
        references = build_references(session, session.mixing())
        pairs = held_out_pairs(session, references.validation)
        take_steps(session, objective_of(session), 3)
        found = pairs.judge(held_out_losses(session.policy, session.held_out()))["chat"]
        plain, base = (AutoModelForCausalLM.from_pretrained(f"{workspace}/model").float() for _ in range(2))
        weights = {name: value.detach().clone() for name, value in session.loaded.model.state_dict().items()}
        plain.load_state_dict(weights)
        split = session.stores["chat"].validation
        rewards = []
        for index in range(split.num_pieces):
            piece = split.piece(index)
            learnt = np.where(piece.supervised, piece.tokens, -100)
            document = (piece.tokens.tolist(), [*learnt[1:].tolist(), -100])
            with torch.no_grad():
                ratio = tokens_of(plain, document).sum() - tokens_of(base, document).sum()
            rewards.append(BETA * float(ratio))
    chosen, rejected = np.array(rewards[0::2]), np.array(rewards[1::2])
    return {
        "ours": [found.loss, found.reward_chosen, found.reward_rejected, found.ranked.accuracy],
        "theirs": [
            float(np.log1p(np.exp(rejected - chosen)).mean()),
            float(chosen.mean()),
            float(rejected.mean()),
            float((chosen > rejected).mean()),
        ],
        "count": [found.ranked.num_pairs, len(chosen)],
    }


def test_held_out_pairs_are_ranked_as_by_plain_models(pool, workspace, data, tmp_path):
    found = pool(1).run(
        ranked, workspace=workspace, data=data, run_dir=str(tmp_path), words=["zero.stage=0"]
    )[0]
    assert found["ours"] == pytest.approx(found["theirs"], rel=1e-4, abs=1e-6)
    assert found["count"][0] == found["count"][1] > 3


def test_a_run_in_which_both_rewards_fall_says_so_in_its_log_and_ledger(pool, workspace, data, tmp_path):
    words = ["objective.preference.loss=apo_down", "train.max_steps=8", "log.every_steps=1", "optim.lr=0.01"]
    pool(1).run(train, run_dir=str(tmp_path), copy_from=None, workspace=workspace, data=data, words=words)
    (log,) = tmp_path.glob("logs/attempt-1/rank-0.log")
    events = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    warned = [event for event in events if event["event"] == "warned"]
    assert len(warned) == 1 and warned[0]["why"] in log.read_text()
