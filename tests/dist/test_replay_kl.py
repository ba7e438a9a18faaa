"""KL to the base on replay: the same at every stage and number of ranks, resumable, and never from tuned weights."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.dist.session import bytes_of, config_of, old_replay, plain_adamw, references, session_of
from tests.dist.test_zero import FP32, cosine
from tests.helpers.divergence import plain_divergence, top_tokens
from tests.helpers.tiny import write_documents
from trainer.checkpoint.layout import STATE, step_dir
from trainer.dist.mesh import Axis
from trainer.errors import DataError

NUM_STEPS = 6
BETA = 3.0
KEYS = ("loss", "total_loss", "kl", "grad_norm")


def config_for(workspace: str, data: str, run_dir: str | Path, *overrides: str) -> Any:
    return config_of(
        workspace,
        run_dir,
        *old_replay(data),
        f"replay.kl.beta={BETA}",
        "train.micro_batch_size=2",
        "checkpoint.every_steps=3",
        f"train.max_steps={NUM_STEPS}",
        "optim.lr=0.01",
        *overrides,
    )


def make_data(mesh: Any, workspace: str, data: str) -> None:
    from trainer.command.prepare import prepare_data

    write_documents(Path(data) / "old.jsonl", 60, 50, ragged=True)
    prepare_data(config_for(workspace, data, Path(data) / "unused"))


@pytest.fixture(scope="module")
def data(pool: Any, workspace: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("replay_kl"))
    pool(1).run(make_data, workspace=workspace, data=folder)
    return folder


def take_steps(session: Any) -> tuple[list[dict[str, float]], Any]:
    """Train as a run does and return what every step said, and the loader."""
    from trainer.mix.ratio import replay_weights
    from trainer.objective.causal_lm.cross_entropy import CausalLMObjective
    from trainer.optim.schedule import lr_factor
    from trainer.run.step import train_step
    from trainer.run.teaching import build_teacher
    from trainer.run.training import open_loader

    config, mixing = session.config, session.mixing()
    weights = replay_weights(config.data.sources, config.replay)
    objective = CausalLMObjective(list(session.stores), build_teacher(session, mixing, ExitStack()), weights)
    loader = open_loader(session, mixing, objective)
    records = []
    for step in range(NUM_STEPS):
        session.policy.engine.set_lr(config.optim.lr * lr_factor(step, NUM_STEPS, config.schedule))
        result = train_step(session.policy, objective, loader.read(step), stop=lambda: False)
        assert result.is_sound
        means = {mean.name: mean.of(result.sums) for mean in result.means}
        if config.replay.kl.beta:
            assert result.sums["kl_tokens"] == result.sums["targets/old"]
        values = (result.loss, means.get("loss_total") or result.loss, means.get("kl_replay") or 0.0)
        records.append(dict(zip(KEYS, (*values, result.grad_norm), strict=True)))
    loader.close()
    return records, loader


def trained(mesh: Any, workspace: str, data: str, run_dir: str, variants: list[list[str]]) -> Any:
    found = []
    for index, overrides in enumerate(variants):
        with session_of(config_for(workspace, data, f"{run_dir}/{index}", *overrides)) as session:
            found.append(take_steps(session)[0])
    return found


def plain_torch(
    mesh: Any, workspace: str, data: str, run_dir: str, beta: float = BETA, weight: float = 1.0
) -> list[dict[str, float]]:
    """Train with nothing of ours but the batches: every document alone, autograd's KL to a frozen second model."""
    from transformers import AutoModelForCausalLM

    from tests.dist.session import loader_of

    with session_of(config_for(workspace, data, run_dir, "replay.kl.beta=0")) as session:
        loader = loader_of(session, Axis(0, 1))
        batches = [loader.read(step) for step in range(NUM_STEPS)]
        loader.close()
        is_replay = [name == "old" for name in loader.names]
    model, base = (
        AutoModelForCausalLM.from_pretrained(Path(workspace) / "model", dtype=torch.float32) for _ in range(2)
    )
    optimizer = plain_adamw(model)
    records = []
    for step, batch in enumerate(batches):
        for group_of in optimizer.param_groups:
            lr = (step + 1) / 2 if step < 2 else cosine((step - 2) / (NUM_STEPS - 2), 0.1)
            group_of["lr"] = 0.01 * lr
        documents = documents_of(batch, is_replay)
        sums = [plain_document(model, base, *document) for document in documents]
        weights = [weight if document[-1] else 1.0 for document in documents]
        counts = [int((document[1] != -100).sum()) for document in documents]
        total = sum(counts)
        assert total == batch.num_targets_global
        nll, kl = sum(s[0] for s in sums), sum(s[1] for s in sums)
        minimised = sum(w * (s[0] + beta * s[1]) for w, s in zip(weights, sums, strict=True))
        minimised = minimised / sum(w * count for w, count in zip(weights, counts, strict=True))
        minimised.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        num_kl = batch.num_targets_by_source["old"]
        values = (nll / total, minimised, kl / num_kl, norm)
        records.append({key: float(value) for key, value in zip(KEYS, values, strict=True)})
    return records


def documents_of(batch: Any, is_replay: list[bool]) -> list[Any]:
    documents = []
    for micro in batch.micro_batches:
        for row, source in enumerate(micro.source_B):
            for segment in sorted(set(micro.segments_BT[row].tolist())):
                inside = micro.segments_BT[row] == segment
                labels = torch.from_numpy(micro.labels_BT[row][inside])
                if (labels != -100).any():
                    documents.append(
                        (torch.from_numpy(micro.tokens_BT[row][inside]), labels, is_replay[source])
                    )
    return documents


def plain_document(model: Any, base: Any, tokens: Any, labels: Any, is_replay: bool) -> tuple[Any, Any]:
    logits = model(input_ids=tokens[None], use_cache=False).logits[0]
    nll = torch.nn.functional.cross_entropy(logits, labels, reduction="sum").double()
    if not is_replay:
        return nll, torch.zeros((), dtype=torch.float64)
    rows = torch.nonzero(labels != -100)[:, 0].tolist()
    with torch.no_grad():
        base_logits = base(input_ids=tokens[None], use_cache=False).logits[0][rows]
    top = top_tokens(base_logits, rows, 64, BETA)
    top.log_probs_RK.copy_(top.log_probs_RK.half())  # as the reference stores them
    return nll, plain_divergence(logits, top).sum().double()


@pytest.fixture(scope="module")
def expected(pool: Any, workspace: str, data: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    run_dir = str(tmp_path_factory.mktemp("plain"))
    return pool(1).run(plain_torch, workspace=workspace, data=data, run_dir=run_dir)[0]


@pytest.mark.parametrize("num_ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_every_stage_and_number_of_ranks_takes_the_steps_of_plain_torch(
    pool, workspace, data, expected, num_ranks, tmp_path
):
    """At two ranks only: the KL is scaled wrongly for DeepSpeed's average, or a part of the reference is lost.
    Only kl: rows of the reference are beside their positions. Only grad_norm: the analytic gradient.
    """
    variants = [[f"zero.stage={stage}"] for stage in (0, 2, 3)]
    results = pool(num_ranks).run(
        trained, workspace=workspace, data=data, run_dir=str(tmp_path), variants=variants
    )
    assert all(result == results[0] for result in results), "ranks report different numbers"
    assert expected[0]["kl"] < 1e-5 < 1e-2 < expected[-1]["kl"]
    for records in results[0]:
        assert records[0]["kl"] < 1e-5, "the model begins as its base"
        for record, wanted in zip(records, expected, strict=True):
            for key in ("loss", "total_loss", "grad_norm"):
                assert record[key] == pytest.approx(wanted[key], rel=10 * FP32), key
            assert record["kl"] == pytest.approx(wanted["kl"], rel=1e-4, abs=1e-7)
    assert len(references(data)) == 1, "one base, one set of packs, whatever the stage and the ranks"


WEIGHT = 5.0
WEIGHED = [
    (BETA, ["zero.stage=3"]),
    (BETA, ["tune.method=full", "zero.stage=1", "train.micro_batch_size=1"]),
    (0.0, ["zero.stage=2", "replay.kl.beta=0"]),
    (0.0, ["zero.stage=1", "replay.kl.beta=0", "train.sequence_parallel=2"]),
]


def test_a_replay_token_that_weighs_more_counts_more_in_the_sum_and_in_what_divides_it(
    pool, workspace, data, tmp_path
):
    """The norm alone: the gradient is not weighed where it is made. The total alone: the count is not that of weights,
    or of one rank. The plain loss: what is reported is weighed too.
    """
    expected = {
        beta: pool(1).run(
            plain_torch,
            workspace=workspace,
            data=data,
            run_dir=str(tmp_path / f"plain{beta:g}"),
            beta=beta,
            weight=WEIGHT,
        )[0]
        for beta in (0.0, BETA)
    }
    variants = [[*words, f"replay.loss_weight={WEIGHT:g}"] for _, words in WEIGHED]
    results = pool(2).run(trained, workspace=workspace, data=data, run_dir=str(tmp_path), variants=variants)
    assert all(result == results[0] for result in results), "ranks report different numbers"
    for (beta, _), records in zip(WEIGHED, results[0], strict=True):
        for record, wanted in zip(records, expected[beta], strict=True):
            for key in ("loss", "total_loss", "grad_norm"):
                assert record[key] == pytest.approx(wanted[key], rel=10 * FP32), key
    assert abs(expected[0.0][-1]["total_loss"] - expected[0.0][-1]["loss"]) > 1e-3


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
    keys = ("loss", "loss/old", "loss_total", "kl_replay", "grad_norm")
    return {r["step"]: {key: r[key] for key in keys if key in r} for r in records if "loss" in r}


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "dtype"), [(2, "fp32"), (3, "bf16")])
def test_a_resumed_run_is_bitwise_the_same_and_a_lost_reference_is_made_from_the_base_again(
    pool, workspace, data, stage, dtype, tmp_path
):
    """Other losses with the reference there: its rows are not those of the packs. Only without it: the tuned
    weights of the checkpoint were taken for the base.
    """
    for path in references(data):
        shutil.rmtree(path)
    whole, kept, lost = (tmp_path / name for name in ("whole", "kept", "lost"))
    arguments = {
        "workspace": workspace,
        "data": data,
        "overrides": [f"zero.stage={stage}", f"zero.dtype={dtype}"],
    }
    pool(2).run(train, run_dir=str(whole), copy_from=None, **arguments)
    (reference,) = references(data)
    before = bytes_of(reference)
    pool(2).run(train, run_dir=str(kept), copy_from=str(whole), **arguments)
    shutil.rmtree(reference)
    pool(2).run(train, run_dir=str(lost), copy_from=str(whole), **arguments)
    assert references(data) == [reference] and bytes_of(reference) == before
    wanted = rows(whole)
    assert sorted(wanted) == [1, 2, 3, 4, 5, 6] and all(len(row) == 5 for row in wanted.values())
    for row in wanted.values():
        assert row["loss_total"] > row["loss"]
    for resumed in (kept, lost):
        assert rows(resumed) == {step: wanted[step] for step in (4, 5, 6)}
    states = [json.loads((step_dir(run_dir, 6) / STATE).read_text()) for run_dir in (whole, kept, lost)]
    for state in states:
        del state["attempts"]
    assert states[0] == states[1] == states[2]


def nearness(mesh: Any, workspace: str, data: str, run_dir: str) -> list[list[float]]:
    """Return (KL to the base on held-out replay, loss on the target) after training at several betas."""
    from trainer.evaluate.held_out import HeldOut
    from trainer.evaluate.kl import divergence_by_document, take_references

    found = []
    for beta in (0, 1, 20):
        config = config_for(workspace, data, f"{run_dir}/{beta}", f"replay.kl.beta={beta}")
        with session_of(config) as session:
            prompts = HeldOut(["old"], [session.stores["old"].validation], 8, 1, session.pad_id)
            before = take_references(session.policy, prompts)
            records, _ = take_steps(session)
            kl = divergence_by_document(session.policy, prompts, before)["old"]
            found.append([sum(kl[0]) / sum(kl[1]), records[0]["loss"], records[-1]["loss"]])
    return found


@pytest.mark.slow
def test_a_larger_beta_keeps_the_model_nearer_to_its_base_on_replay_it_has_not_seen(
    pool, workspace, data, tmp_path
):
    off, weak, strong = pool(1).run(nearness, workspace=workspace, data=data, run_dir=str(tmp_path))[0]
    print(f"held-out KL and losses: {off} {weak} {strong}")
    assert strong[0] < weak[0] < off[0] and strong[0] < 0.5 * off[0]
    assert off[1] == pytest.approx(strong[1], rel=1e-6), "the reported cross-entropy does not contain the KL"
    assert all(last < first for _, first, last in (off, weak, strong))


def test_off_by_default_nothing_is_asked_and_nothing_is_reported(pool, workspace, data, tmp_path):
    for path in references(data):
        shutil.rmtree(path)
    overrides = ["replay.kl.beta=0"]
    pool(1).run(
        train,
        workspace=workspace,
        data=data,
        run_dir=str(tmp_path / "run"),
        copy_from=None,
        overrides=overrides,
    )
    assert references(data) == []
    assert all(set(row) == {"loss", "loss/old", "grad_norm"} for row in rows(tmp_path / "run").values())


def asked_and_read(mesh: Any, workspace: str, data: str, run_dir: str) -> list[Any]:
    """Return what the reference says of a batch, and what the model says when it is asked, as an adapter's base is."""
    from trainer.objective.causal_lm.cross_entropy import CausalLMObjective
    from trainer.run.teaching import build_teacher
    from trainer.run.training import open_loader

    with session_of(config_for(workspace, data, run_dir, "zero.stage=3")) as session:
        mixing = session.mixing()
        teacher = build_teacher(session, mixing, ExitStack())
        loader = open_loader(session, mixing, CausalLMObjective(list(session.stores), teacher))
        found = []
        for micro in loader.read(0).micro_batches:
            cached = teacher.top_tokens(session.policy, micro)
            labels_BT = micro.labels_BT.copy()
            for row, source in enumerate(micro.source_B):
                if loader.names[source] != "old":
                    labels_BT[row] = -100
            with session.policy.evaluating():
                ids, log_probs = session.policy.top(dataclasses.replace(micro, labels_BT=labels_BT), 64)
            labels = torch.from_numpy(labels_BT)
            assert (cached is None) == (len(ids) == 0)
            if cached is not None:
                positions = torch.nonzero(labels.reshape(-1) != -100)[:, 0]
                assert torch.equal(cached.rows_R, positions)
                same = (cached.ids_RK == ids).float().mean()
                found.append([float(same), float((cached.log_probs_RK.float() - log_probs).abs().max())])
        loader.close()
        return found


def test_a_base_that_is_asked_says_what_the_reference_says(pool, workspace, data, tmp_path):
    found = pool(2).run(asked_and_read, workspace=workspace, data=data, run_dir=str(tmp_path))
    found = [pair for rank in found for pair in rank]
    assert found
    for same, distance in found:
        assert same > 0.99 and distance < 8 * 2.0**-11  # log-probabilities of 4 to 8, rounded to float16


def failures(mesh: Any, workspace: str, data: str, run_dir: str) -> dict[str, Any]:
    """Let builds of the reference fail in several ways and say what they raised and left."""
    from trainer.run.heed import GivenUp
    from trainer.run.teaching import build_teacher
    from trainer.runtime.signals import StopFlag
    from trainer.teacher import cached, reference

    answers: dict[str, Any] = {}

    def attempt(name: str, session: Any) -> None:
        mixing = session.mixing()
        try:
            answers[name] = build_teacher(session, mixing, ExitStack()).reference.num_positions
        except (DataError, RuntimeError, GivenUp) as error:
            answers[name] = f"{type(error).__name__}: {error}"
        mesh.barrier()
        answers[f"{name} left"] = [path.name for path in references(data)]
        mesh.barrier()

    with session_of(config_for(workspace, data, run_dir)) as session:
        add, free, forward = reference.ReferenceWriter.add, cached.bytes_free, session.policy.engine.forward

        def fails(*arguments: Any) -> None:
            raise OSError(28, "No space left on device")

        if mesh.rank == 1:
            reference.ReferenceWriter.add = fails
        attempt("write", session)
        reference.ReferenceWriter.add = add
        cached.bytes_free = lambda path: 1000
        attempt("room", session)
        cached.bytes_free = free
        calls = []

        def breaks(ask: Any, **inputs: Any) -> Any:
            calls.append(1)
            if len(calls) == 3:
                raise RuntimeError("broken")
            return forward(ask, **inputs)

        session.policy.engine.forward = breaks
        attempt("break", session)
        session.policy.engine.forward = forward
        with StopFlag() as flag:
            if mesh.rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            session.stop_flag = flag
            attempt("stop", session)
            session.stop_flag = None
        attempt("whole", session)
        session.policy.engine.forward = breaks  # not called again
        attempt("known", session)
        assert len(calls) == 3
    return answers


def test_a_build_that_fails_leaves_nothing_and_every_rank_says_why(pool, workspace, data, tmp_path):
    for path in references(data):
        shutil.rmtree(path)
    for answers in pool(2).run(failures, workspace=workspace, data=data, run_dir=str(tmp_path)):
        assert answers["write"].startswith("DataError: `data.cache_dir` must be a folder with room")
        assert "rank 1" in answers["write"] and "No space left" in answers["write"]
        assert answers["room"].startswith("DataError: `data.cache_dir` must have room for the base model's")
        assert answers["break"] == "RuntimeError: broken"
        assert answers["stop"] == "GivenUp: ", "a signal to one rank ends the asking on all"
        assert (
            answers["write left"]
            == answers["room left"]
            == answers["break left"]
            == answers["stop left"]
            == []
        )
        assert answers["whole"] == answers["known"] > 100
        assert len(answers["whole left"]) == 1 and answers["known left"] == answers["whole left"]


@pytest.mark.slow
def test_another_base_number_of_tokens_or_set_of_packs_is_another_reference(pool, workspace, data, tmp_path):
    for path in references(data):
        shutil.rmtree(path)
    names = []
    choices = [[], ["replay.kl.top=8"], [f"model.path={workspace}/tied"], ["optim.lr=0.001"], ["seed=5"]]
    for index, words in enumerate(choices):
        pool(1).run(
            trained, workspace=workspace, data=data, run_dir=str(tmp_path / str(index)), variants=[words]
        )
        names.append({path.name for path in references(data)})
    assert [len(found) for found in names] == [1, 2, 3, 3, 4]


@pytest.mark.parametrize(
    ("stage", "quantise"),
    [
        *(pytest.param(stage, "none", marks=pytest.mark.slow) for stage in (1, 3)),
        pytest.param(1, "nf4", marks=pytest.mark.slow),
        pytest.param(3, "nf4", marks=pytest.mark.slow),
    ],
)
def test_an_adapters_base_is_the_model_with_the_adapter_off(pool, workspace, data, stage, quantise, tmp_path):
    """KL at the first step: the adapter was not off, or not silent. None later: it stays off. A reference on disk: the
    cached way was taken.
    """
    for path in references(data):
        shutil.rmtree(path)
    adapter = ["tune.method=lora", "tune.r=4", "optim.lr=0.05", "zero.dtype=fp32", f"zero.stage={stage}"]
    adapter.append(f"tune.quantise={quantise}")
    found = {}
    for name, beta in (("free", 1e-9), ("held", 20.0)):
        overrides = [*adapter, f"replay.kl.beta={beta}"]
        run_dir = tmp_path / name
        pool(2).run(
            train, workspace=workspace, data=data, run_dir=str(run_dir), copy_from=None, overrides=overrides
        )
        found[name] = rows(run_dir)
        assert found[name][1]["kl_replay"] < 1e-6, found[name]
    assert references(data) == []
    free, held = (found[name][6]["kl_replay"] for name in ("free", "held"))
    assert 1e-4 < held < free, (held, free)
    assert found["held"][6]["loss_total"] > found["held"][6]["loss"]
