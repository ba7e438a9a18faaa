"""Distillation: the steps of plain torch with TRL's loss, at every stage and number of ranks, resumable to the bit."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.dist.session import bytes_of, config_of, old_replay, plain_adamw, references, session_of
from tests.dist.test_replay_kl import documents_of
from tests.dist.test_zero import FP32, cosine
from tests.helpers.tiny import save_llama, write_documents
from trainer.checkpoint.layout import STATE, step_dir
from trainer.dist.mesh import Axis

VOCAB = 264
KEYS = ("loss", "divergence", "cross_entropy", "loss/old", "grad_norm")
WEIGHT, CROSS_ENTROPY = 1.5, 0.5
KINDS = {"forward": 0.0, "reverse": 1.0, "jsd": 0.3}
"""Divergences, and the beta of TRL that each is."""


def words_of(kind: str = "forward", temperature: float = 1.0, top: int = VOCAB) -> list[str]:
    key = "objective.distill"
    return [
        *(f"{key}.divergence={kind}", f"{key}.temperature={temperature}", f"{key}.top={top}"),
        *([f"{key}.jsd_beta={KINDS[kind]}"] if kind == "jsd" else []),
    ]


def config_for(workspace: str, data: str, run_dir: str | Path, *overrides: str) -> Any:
    key = "objective.distill"
    return config_of(
        workspace,
        run_dir,
        *old_replay(data),
        "objective.kind=distill",
        *(f"{key}.teacher={data}/teacher", f"{key}.precision=fp32"),
        *(f"{key}.weight={WEIGHT}", f"{key}.cross_entropy={CROSS_ENTROPY}"),
        "train.micro_batch_size=2",
        "checkpoint.every_steps=3",
        "train.max_steps=6",
        "optim.lr=0.01",
        *overrides,
    )


def make_data(mesh: Any, workspace: str, data: str) -> None:
    from transformers import AutoModelForCausalLM

    from trainer.command.prepare import prepare_data

    save_llama(Path(data) / "teacher", seed=9, hidden_size=48)
    teacher = AutoModelForCausalLM.from_pretrained(Path(data) / "teacher")
    with torch.no_grad():
        teacher.lm_head.weight.mul_(4)  # so that it is sure of something
    teacher.save_pretrained(Path(data) / "teacher")
    # Rows behind the vocabulary, as padded models have, on which the teacher puts much.
    padded = AutoModelForCausalLM.from_pretrained(Path(data) / "teacher")
    padded.resize_token_embeddings(VOCAB + 8, mean_resizing=False)
    with torch.no_grad():
        padded.lm_head.weight[VOCAB:] = 5 * padded.lm_head.weight[:8]
    padded.save_pretrained(Path(data) / "padded")
    for file in (Path(data) / "teacher").glob("tokenizer*"):
        shutil.copy(file, Path(data) / "padded")
    write_documents(Path(data) / "old.jsonl", 60, 50, ragged=True)
    prepare_data(config_for(workspace, data, Path(data) / "unused"))


@pytest.fixture(scope="module")
def data(pool: Any, workspace: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("distill"))
    pool(1).run(make_data, workspace=workspace, data=folder)
    return folder


def take_steps(session: Any, stack: ExitStack) -> list[dict[str, float]]:
    """Train as a run does and return what every step said."""
    from trainer.config.teacher import distilled
    from trainer.objective.build import build_objective
    from trainer.optim.schedule import lr_factor
    from trainer.run.step import train_step
    from trainer.run.teaching import build_teacher
    from trainer.run.training import open_loader

    config, mixing = session.config, session.mixing()
    units = [store.train.unit for store in session.stores.values()]
    teacher = build_teacher(session, mixing, stack)
    numbers = distilled(config.data.sources)
    objective = build_objective(config.objective, list(session.stores), units, teacher, distilled=numbers)
    loader = open_loader(session, mixing, objective)
    records = []
    for step in range(mixing.num_steps):
        lr = config.optim.lr * lr_factor(step, mixing.num_steps, config.schedule)
        session.policy.engine.set_lr(lr)
        result = train_step(session.policy, objective, loader.read(step), stop=lambda: False)
        assert result.is_sound
        means = {mean.name: mean.of(result.sums) for mean in result.means}
        records.append({key: means.get(key, result.grad_norm) for key in KEYS})
    loader.close()
    return records


def trained(mesh: Any, workspace: str, data: str, run_dir: str, variants: list[list[str]]) -> Any:
    found = []
    for index, overrides in enumerate(variants):
        config = config_for(workspace, data, f"{run_dir}/{index}", *overrides)
        with session_of(config) as session, ExitStack() as stack:
            found.append(take_steps(session, stack))
    return found


def plain_torch(
    mesh: Any, workspace: str, data: str, run_dir: str, kind: str, temperature: float, words: list[str]
) -> list[dict[str, float]]:
    """Train with nothing of ours but the batches: every document alone, TRL's loss against a second model."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from transformers import AutoModelForCausalLM
    from trl.experimental.gkd import GKDTrainer

    from tests.dist.session import loader_of

    with session_of(config_for(workspace, data, run_dir, *words)) as session:
        loader, num_steps = loader_of(session, Axis(0, 1)), session.mixing().num_steps
        batches = [loader.read(step) for step in range(num_steps)]
        loader.close()
        is_other = [name == "old" for name in loader.names]
    places = (Path(workspace) / "model", Path(data) / "teacher")
    model, teacher = (AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32) for place in places)
    optimizer = plain_adamw(model)
    records = []
    for step, batch in enumerate(batches):
        for group_of in optimizer.param_groups:
            lr = (step + 1) / 2 if step < 2 else cosine((step - 2) / (num_steps - 2), 0.1)
            group_of["lr"] = 0.01 * lr
        divergence, nll, other = (torch.zeros((), dtype=torch.float64) for _ in range(3))
        num_other = batch.num_targets_by_source["old"]
        num = batch.num_targets_global - num_other
        for tokens, labels, is_old in documents_of(batch, is_other):
            logits = model(input_ids=tokens[None], use_cache=False).logits[0]
            found = torch.nn.functional.cross_entropy(logits, labels, reduction="sum").double()
            if is_old:
                other = other + found
                continue
            nll = nll + found
            with torch.no_grad():
                says = teacher(input_ids=tokens[None], use_cache=False).logits
            divergence = divergence + GKDTrainer.generalized_jsd_loss(
                logits[None], says, labels[None], KINDS[kind], temperature, reduction="sum"
            )
        loss = WEIGHT * temperature**2 * divergence / num + CROSS_ENTROPY * nll / num + other / num_other
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        values = (loss, divergence / num, nll / num, other / num_other, norm)
        records.append({key: float(value) for key, value in zip(KEYS, values, strict=True)})
    return records


def assert_alike(records: list[dict[str, float]], wanted: list[dict[str, float]], rel: float) -> None:
    for step, (record, plain) in enumerate(zip(records, wanted, strict=True)):
        for key in KEYS:
            assert record[key] == pytest.approx(plain[key], rel=rel), (step, key)


def test_twenty_steps_are_those_of_plain_torch_with_the_loss_of_trl(pool, workspace, data, tmp_path):
    """The loss alone: a count divides another part. The divergence: buckets, or rows of the cache. The norm alone: the
    analytic gradient, or the square of the temperature.
    """
    words = [*words_of("jsd", 2.0), "train.max_steps=20"]
    wanted = pool(1).run(
        plain_torch,
        workspace=workspace,
        data=data,
        run_dir=str(tmp_path / "plain"),
        kind="jsd",
        temperature=2.0,
        words=words,
    )[0]
    found = pool(1).run(
        trained, workspace=workspace, data=data, run_dir=str(tmp_path / "ours"), variants=[words]
    )[0][0]
    assert len(found) == 20 and wanted[0]["divergence"] > 0.1
    assert_alike(found, wanted, rel=1e-5)


VARIANTS = [
    ["zero.stage=0"],
    ["zero.stage=1", "train.micro_batch_size=1"],
    ["zero.stage=2", "objective.distill.cached=false"],
    ["zero.stage=3"],
    ["zero.stage=3", "objective.distill.cached=false", "train.micro_batch_size=1"],
]


@pytest.mark.parametrize(
    ("kind", "temperature"), [("reverse", 1.0), pytest.param("forward", 1.5, marks=pytest.mark.slow)]
)
def test_every_stage_rank_and_micro_batch_takes_the_same_steps_cached_or_not(
    pool, workspace, data, kind, temperature, tmp_path
):
    """At two ranks only: scaled wrongly for DeepSpeed's average. Not cached only: the teacher, or the mask of what it
    is asked about. At stage 3 only: its rows are not gathered.
    """
    words = [*words_of(kind, temperature), "train.max_steps=3"]
    arguments = {
        "workspace": workspace,
        "data": data,
        "kind": kind,
        "temperature": temperature,
        "words": words,
    }
    wanted = pool(1).run(plain_torch, run_dir=str(tmp_path / "plain"), **arguments)[0]
    before = references(data)
    variants = [[*words, *variant] for variant in VARIANTS]
    results = pool(2).run(trained, workspace=workspace, data=data, run_dir=str(tmp_path), variants=variants)
    alone = pool(1).run(
        trained, workspace=workspace, data=data, run_dir=str(tmp_path / "1"), variants=variants[:1]
    )
    assert all(result == results[0] for result in results), "ranks report different numbers"
    for records in [*results[0], *alone[0]]:
        assert_alike(records, wanted, rel=10 * FP32)
    assert len(references(data)) == len(before) + 1, (
        "one teacher, one set of packs, whatever the stage and the ranks"
    )


def test_adapters_learn_the_same_from_few_tokens_whatever_the_ranks_and_the_stage(
    pool, workspace, data, tmp_path
):
    lora = [*words_of("jsd", 2.0, top=8), "tune.method=lora", "tune.r=4", "train.max_steps=3"]
    variants = [[*lora, "zero.stage=0"], [*lora, "zero.stage=3", "objective.distill.cached=false"]]
    arguments = {"workspace": workspace, "data": data}
    alone = pool(1).run(trained, run_dir=str(tmp_path / "1"), variants=variants[:1], **arguments)[0]
    both = pool(2).run(trained, run_dir=str(tmp_path / "2"), variants=variants, **arguments)[0]
    assert alone[0][-1]["divergence"] != alone[0][0]["divergence"]
    for records in both:
        assert_alike(records, alone[0], rel=10 * FP32)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(pool, workspace, data, tmp_path):
    """A loss: temperature or rows differ between the two. A gradient alone: the analytic one."""
    key = "objective.distill"
    words = [f"{key}.teacher={workspace}/model", f"{key}.cached=false", "replay.ratio=0"]
    words += [f"{key}.cross_entropy=0", "train.max_steps=1"]
    variants = [[*words, *words_of(kind, 2.0, top=top)] for kind in KINDS for top in (5, VOCAB)]
    found = pool(1).run(trained, workspace=workspace, data=data, run_dir=str(tmp_path), variants=variants)[0]
    for (record,) in found:
        assert abs(record["loss"]) < 1e-6 and abs(record["divergence"]) < 1e-6 and record["grad_norm"] < 1e-6


def test_ids_that_one_of_both_has_are_masked_out_of_both(pool, workspace, data, tmp_path):
    """The padded teacher is the other one with rows behind its vocabulary, on which it puts most of its mass."""
    variants = [
        words_of("jsd", top=16),
        [*words_of("jsd", top=16), f"objective.distill.teacher={data}/padded"],
    ]
    plain, padded = pool(1).run(
        trained, workspace=workspace, data=data, run_dir=str(tmp_path), variants=variants
    )[0]
    assert_alike(padded, plain, rel=1e-6)


def train(
    mesh: Any, workspace: str, data: str, run_dir: str, copy_from: str | None, overrides: list[str]
) -> None:
    from trainer.run import training

    if copy_from and mesh.is_first:
        shutil.copytree(step_dir(Path(copy_from), 3), step_dir(Path(run_dir), 3))
    mesh.barrier()
    assert training.run_training(config_for(workspace, data, run_dir, *overrides)).value == "finished"


def rows(run_dir: Path) -> dict[int, dict[str, float]]:
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {r["step"]: {key: r[key] for key in KEYS} for r in records if "loss" in r}


@pytest.mark.slow
@pytest.mark.parametrize("cached", [True, False])
def test_a_resumed_run_is_bitwise_the_same_and_a_lost_cache_is_made_again(
    pool, workspace, data, cached, tmp_path
):
    """Dropout, so that a teacher that is loaded or not must not move the generators of random numbers."""
    whole, kept = tmp_path / "whole", tmp_path / "kept"
    words = [*words_of("reverse", 2.0, top=12), f"objective.distill.cached={str(cached).lower()}"]
    words += [f"model.path={workspace}/dropout", "zero.stage=3", "zero.dtype=bf16"]
    words += ["objective.distill.precision=fp16"]
    before = set(references(data))
    arguments = {"workspace": workspace, "data": data, "overrides": words}
    pool(2).run(train, run_dir=str(whole), copy_from=None, **arguments)
    made = set(references(data)) - before
    assert len(made) == cached
    digests = {folder: bytes_of(folder) for folder in made}
    for folder in made:
        shutil.rmtree(folder)
    pool(2).run(train, run_dir=str(kept), copy_from=str(whole), **arguments)
    assert set(references(data)) - before == made and {f: bytes_of(f) for f in made} == digests
    wanted = rows(whole)
    assert sorted(wanted) == [1, 2, 3, 4, 5, 6] and wanted[6]["divergence"] > 0
    assert rows(kept) == {step: wanted[step] for step in (4, 5, 6)}
    states = [json.loads((step_dir(run_dir, 6) / STATE).read_text()) for run_dir in (whole, kept)]
    for state in states:
        del state["attempts"]
    assert states[0] == states[1]
