"""Reward models of a run against plain torch and plain transformers, which read neither stores nor packs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.dist.session import config_of, plain_adamw, session_of
from tests.dist.test_preference import take_steps, units_of_steps
from tests.dist.test_resume import contents, losses
from tests.dist.test_zero import assert_close, cosine
from trainer.checkpoint.layout import step_dir
from trainer.cli import run_command

NUM_STEPS = 4
FP32 = 2e-6
"""Relative; as for other losses of whole documents."""
CENTRE = 0.1
WORDS = "abc defg hij klmno pq"


def write_rows(folder: Path) -> None:
    rng = np.random.default_rng(7)

    def said(low: int, high: int) -> str:
        return "".join(rng.choice(list(WORDS), int(rng.integers(low, high))))

    rows = [
        {
            "prompt": said(2, 9) + "?",
            "chosen": said(1, 16) + ".",
            "rejected": said(1, 12) + "!",
            "margin": round(float(rng.normal()), 3),
        }
        for _ in range(180)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def config_for(workspace: str, data: str, run_dir: str | Path, *overrides: str) -> Any:
    """Return a configuration of a reward model, of texts that end with EOS."""
    return config_of(
        workspace,
        run_dir,
        "~data.sources.text",
        "data.sources.chat.format=preference",
        "data.sources.chat.columns.loss_mask=null",
        f"data.sources.chat.path={data}/pairs.jsonl",
        "objective.kind=reward",
        "model.head=score",
        "data.values=[margin]",
        "evaluate.forgetting=false",
        f"data.cache_dir={data}/cache",
        f"train.max_steps={NUM_STEPS}",
        f"model.path={data}/scorer",
        *overrides,
    )


def save_scorer(workspace: str, folder: Path) -> None:
    """Save the workspace's model as a reward model of plain transformers."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = AutoModelForSequenceClassification.from_pretrained(
            Path(workspace) / "model", num_labels=1, dtype=torch.float32
        )
        torch.nn.init.normal_(model.score.weight, std=0.3)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(Path(workspace) / "model").save_pretrained(folder)


def make_data(mesh: Any, workspace: str, data: str) -> None:
    from trainer.command.prepare import prepare_data

    write_rows(Path(data))
    save_scorer(workspace, Path(data) / "scorer")
    prepare_data(config_for(workspace, data, Path(data) / "unused"))


@pytest.fixture(scope="module")
def data(pool: Any, workspace: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("reward"))
    pool(1).run(make_data, workspace=workspace, data=folder)
    return folder


def objective_of(session: Any) -> Any:
    from trainer.objective.build import build_objective

    units = [store.train.unit for store in session.stores.values()]
    return build_objective(session.config.objective, list(session.stores), units)


def asked_margins(folder: str) -> dict[tuple[str, ...], float]:
    rows = [json.loads(line) for line in (Path(folder) / "pairs.jsonl").read_text().splitlines()]
    return {
        tuple("".join((row["prompt"] + row[side]).split()) for side in ("chosen", "rejected")): row["margin"]
        for row in rows
    }


def by_torch(mesh: Any, workspace: str, data: str, run_dir: str) -> dict[str, list[dict[str, float]]]:
    """Train with nothing of ours but which pairs a step has: every answer alone, scored by transformers' own class."""
    with session_of(config_for(workspace, data, run_dir)) as session:
        steps = units_of_steps(session)
        decode = session.tokenizer.decode
        asked = asked_margins(data)
        pairs = []
        for units in steps:
            found = []
            for unit in units:
                said = (decode(tokens).removesuffix("<|endoftext|>") for tokens, _ in unit)
                texts = tuple("".join(text.split()) for text in said)
                assert all(tokens[-1] == session.tokenizer.eos_id for tokens, _ in unit)
                found.append(([tokens for tokens, _ in unit], asked[texts]))
            pairs.append(found)
    assert len({len(found) for found in pairs}) > 1, "steps have as many pairs"
    return {str(centre): torch_steps(data, pairs, centre) for centre in (0.0, CENTRE)}


def torch_steps(data: str, steps: Any, centre: float) -> list[dict[str, float]]:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(Path(data) / "scorer", dtype=torch.float32)
    optimizer, records = plain_adamw(model), []
    for step, pairs in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * ((step + 1) / 2 if step < 2 else cosine((step - 2) / (NUM_STEPS - 2), 0.1))
        losses, squares = [], []
        for sides, margin in pairs:
            c, r = (model(input_ids=torch.tensor([tokens])).logits[0, 0].double() for tokens in sides)
            losses.append(torch.log1p(torch.exp(-(c - r - float(np.float32(margin))))))
            squares.append((c + r) ** 2)
        whole = torch.stack(losses).mean() + centre * torch.stack(squares).mean()
        whole.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        records.append(
            {"loss": float(whole), "pair_loss": float(torch.stack(losses).mean()), "grad_norm": float(norm)}
        )
    return records


def trained(mesh: Any, workspace: str, data: str, run_dir: str, variants: list[Any]) -> Any:
    found = []
    for index, (centre, overrides) in enumerate(variants):
        words = [f"objective.reward.centre={centre}", *overrides]
        with session_of(config_for(workspace, data, f"{run_dir}/{index}", *words)) as session:
            found.append(take_steps(session, objective_of(session)))
    return found


@pytest.fixture(scope="module")
def expected(pool: Any, workspace: str, data: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    run_dir = str(tmp_path_factory.mktemp("plain"))
    return pool(1).run(by_torch, workspace=workspace, data=data, run_dir=run_dir)[0]


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_steps_of_a_reward_model_are_those_of_plain_transformers_at_every_stage(
    pool, workspace, data, expected, num_ranks, tmp_path
):
    """One alone off: another token is scored, a margin is another pair's, or a count is not that of all ranks."""
    variants = [
        (centre, [f"zero.stage={stage}", f"train.micro_batch_size={1 + stage % 2}"])
        for stage, centre in ((0, CENTRE), (1, 0.0), (3, CENTRE))
    ]
    answers = pool(num_ranks).run(
        trained, workspace=workspace, data=data, run_dir=str(tmp_path), variants=variants
    )
    for answer in answers:
        for (centre, _), records in zip(variants, answer, strict=True):
            reports = [record.pop("all") for record in records]
            wanted = expected[str(centre)]
            assert_close(records, wanted, FP32, 10 * FP32)
            for record, one in zip(records, wanted, strict=True):
                assert record == pytest.approx(one, rel=10 * FP32)
            for report in reports:
                assert report["reward_margin"] == pytest.approx(
                    report["reward_chosen"] - report["reward_rejected"], abs=1e-9
                )
                assert report["loss"] == pytest.approx(
                    report["pair_loss"] + centre * report["off_centre"], rel=1e-9
                )


def begun(mesh: Any, workspace: str, data: str, run_dir: str) -> Any:
    """Return the new layer of a run from a language model at two stages, as every rank holds it."""
    from trainer.engine.gathering import gathered

    found = []
    for stage in (1, 3):
        words = [f"model.path={workspace}/model", f"zero.stage={stage}", "seed=5"]
        with session_of(config_for(workspace, data, f"{run_dir}/{stage}", *words)) as session:
            weight = session.loaded.model.score.weight
            with gathered([weight]):
                found.append(weight.detach().clone())
    return torch.stack(found).tolist()


def test_a_new_layer_is_the_same_on_all_ranks_and_at_every_stage(pool, workspace, data, tmp_path):
    """transformers draws it anew on each rank where ZeRO-3 shards it; OpenRLHF's was lost so more than once."""
    one = pool(1).run(begun, workspace=workspace, data=data, run_dir=str(tmp_path / "1"))[0]
    two = pool(2).run(begun, workspace=workspace, data=data, run_dir=str(tmp_path / "2"))
    wanted = 0.1 * torch.randn(1, 32, generator=torch.Generator().manual_seed(5))
    for found in (one[0], one[1], *two[0], *two[1]):
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-6)


def filled_up(mesh: Any, workspace: str, data: str, run_dir: str) -> Any:
    from trainer.data.pack.refs import FILLER, PackRef, read_batch
    from trainer.objective.contract import Sums

    found = []
    with session_of(config_for(workspace, data, run_dir, "objective.reward.centre=1")) as session:
        stores = [store.train for store in session.stores.values()]
        objective = objective_of(session)
        first, second = (PackRef(0, pack, 0) for pack in session.mixing().to_draw([0])[0][:2].tolist())
        for refs in ([first], [first, FILLER], [FILLER]):
            micro = read_batch(stores, refs, session.pad_id, second)
            (part,) = objective.terms(session.policy, micro, Sums(objective.sum_names, mesh.device))
            assert part.loss_sum.requires_grad
            found.append(float(part.loss_sum))
    return found


def test_a_pack_that_fills_up_adds_no_pair_and_still_has_a_gradient(pool, workspace, data, tmp_path):
    alone, beside, nothing = pool(1).run(
        filled_up, workspace=workspace, data=data, run_dir=str(tmp_path / "run")
    )[0]
    assert beside == pytest.approx(alone, rel=FP32) and nothing == 0.0


def finish(mesh: Any, workspace: str, data: str, run_dir: str, words: list[str]) -> Any:
    """Train to the end and return the scores of held-out pairs as a run of its own reads them."""
    from trainer.checkpoint.named import find_checkpoint
    from trainer.checkpoint.shards import open_shards
    from trainer.config.snapshot import freeze
    from trainer.evaluate.held_out_scores import held_out_scores
    from trainer.run import training
    from trainer.run.sharing import with_sharing

    config = with_sharing(config_for(workspace, data, run_dir, *words), says=False)
    if mesh.is_first:
        freeze(config, Path(run_dir))
    mesh.barrier()
    assert training.run_training(config).value == "finished"
    with session_of(config) as session:
        session.policy.engine.load(open_shards(find_checkpoint(Path(run_dir), "last", "evaluate.checkpoint")))
        scores = held_out_scores(session.policy, session.held_out())["chat"]
        pieces = held_out_pieces(session)
    return pieces, np.stack([scores.chosen_P, scores.rejected_P], axis=1).reshape(-1).tolist()


def held_out_pieces(session: Any) -> list[list[int]]:
    """Return the tokens of all held-out answers, in the order of their packs."""
    store, found = session.stores["chat"].validation, []
    for number in range(store.num_packs):
        pack, start = store.pack(number), 0
        for length, seen in zip(pack.lengths, pack.prefixes or [0] * len(pack.lengths), strict=True):
            before = found[-1][:seen] if seen else []
            found.append([*before, *pack.tokens[start : start + length].tolist()])
            start += length
    return found


def plain_scores(model: Any, pieces: list[list[int]], pad_id: int) -> np.ndarray:
    """Score answers in batches of five with padding on the right, by the model's own forward."""
    found: list[float] = []
    model.eval()
    for start in range(0, len(pieces), 5):
        some = pieces[start : start + 5]
        width = max(map(len, some))
        ids = torch.tensor([tokens + [pad_id] * (width - len(tokens)) for tokens in some])
        mask = torch.tensor([[1] * len(tokens) + [0] * (width - len(tokens)) for tokens in some])
        with torch.no_grad():
            found += model(input_ids=ids, attention_mask=mask).logits[:, 0].tolist()
    return np.array(found)


def test_scores_of_exports_are_those_of_the_run_in_plain_transformers_and_peft(
    pool, workspace, data, tmp_path, capsys
):
    """One alone off: the layer was lost, another token is pooled, or it trains beside the adapter unsaved."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from trainer.command.export import export_model
    from trainer.config.store import load_config

    base = f"{workspace}/model"
    runs = {
        "full": ["zero.stage=3", "optim.lr=1e-2"],
        "lora": [f"model.path={base}", "tune.method=lora", "tune.r=4", "optim.lr=1e-2"],
    }
    scores = {}
    for name, words in runs.items():
        pieces, scores[name] = pool(2).run(
            finish, workspace=workspace, data=data, run_dir=str(tmp_path / name), words=words
        )[0]
    assert len(pieces) >= 40, "20 pairs"
    for name, merges in (("full", False), ("lora", False), ("lora", True)):
        out = tmp_path / f"{name}-{merges}"
        options = [f"export.output_dir={out}", f"export.merge={merges}"]
        assert export_model(load_config(tmp_path / name / "config.yaml", options)) == 0
        pad_id = AutoTokenizer.from_pretrained(out).pad_token_id
        assert pad_id == 0, "no text ends with <|pad|>"
        if name == "lora" and not merges:
            plain = AutoModelForSequenceClassification.from_pretrained(
                base, num_labels=1, pad_token_id=pad_id, dtype=torch.float32
            )
            model: Any = PeftModel.from_pretrained(plain, str(out))
            assert type(model).__name__ == "PeftModelForSequenceClassification"
        else:
            config = json.loads((out / "config.json").read_text())
            assert config["architectures"] == ["LlamaForSequenceClassification"]
            assert config["pad_token_id"] == 0 and not config.get("problem_type")
            model, info = AutoModelForSequenceClassification.from_pretrained(
                out, dtype=torch.float32, output_loading_info=True
            )
            assert model.num_labels == 1
            assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        found = plain_scores(model, pieces, pad_id)
        assert np.std(found) > 1e-2, "scores differ"
        np.testing.assert_allclose(found, scores[name], atol=1e-5)
    assert "verified" in capsys.readouterr().out
    scored_alike(tmp_path, data, Path(f"{tmp_path}/lora-False"), Path(f"{tmp_path}/lora-True"))
    assert run_command(["evaluate", base, f"evaluate.scores.file={data}/pairs.jsonl"]) == 2
    assert "is a language model instead" in capsys.readouterr().err
    assert run_command(["export", str(tmp_path / "lora"), "model.head=language"]) == 2
    assert "`model.head` must be score with objective=reward" in capsys.readouterr().err


def scored_alike(tmp_path: Path, data: str, adapter: Path, merged: Path) -> None:
    """Score the file of pairs by an adapter, which peft loads, and by the model that it was merged into."""
    rows = []
    for folder in (adapter, merged):
        words = [f"evaluate.scores.file={data}/pairs.jsonl", "evaluate.scores.as_chat=false"]
        assert run_command(["evaluate", str(folder), *words]) == 0
        output = folder.with_name(f"{folder.name}-scores")
        rows.append([json.loads(line) for line in (output / "scores.jsonl").read_text().splitlines()])
        summary = json.loads((output / "summary.json").read_text())
        kept = [row for row in rows[-1] if "score_chosen" in row]
        right = sum(row["score_chosen"] > row["score_rejected"] for row in kept)
        assert summary["pairs"]["num_pairs"] == len(kept) and summary["dropped"] == len(rows[-1]) - len(kept)
        assert summary["pairs"]["accuracy"] == pytest.approx(right / len(kept))
    for one, other in zip(*rows, strict=True):
        assert one.get("score_chosen", 0) == pytest.approx(other.get("score_chosen", 0), abs=1e-5)


def twice(mesh: Any, workspace: str, data: str, folder: str) -> None:
    """Train four steps; then again from a copy of the checkpoint after two."""
    from trainer.run import training

    words = [
        "zero.stage=3",
        f"model.path={workspace}/model",
        "checkpoint.every_steps=2",
        "evaluate.every_steps=2",
    ]
    whole, resumed = Path(folder) / "whole", Path(folder) / "resumed"
    assert training.run_training(config_for(workspace, data, whole, *words)).value == "finished"
    if mesh.is_first:
        shutil.copytree(step_dir(whole, 2), step_dir(resumed, 2))
    mesh.barrier()
    assert training.run_training(config_for(workspace, data, resumed, *words)).value == "finished"


@pytest.mark.slow
def test_a_resumed_reward_model_is_the_same_to_the_last_bit(pool, workspace, data, tmp_path):
    pool(2).run(twice, workspace=workspace, data=data, folder=str(tmp_path))
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    before, after = losses(whole), losses(resumed)
    assert sorted(after) == [3, 4] and {step: before[step] for step in after} == after
    assert contents(step_dir(whole, 4)) == contents(step_dir(resumed, 4))
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "eval_accuracy/chat" in line][-1]
    assert last["step"] == NUM_STEPS and last["eval/chat"] == last["eval_pair_loss/chat"]
    assert (
        0
        <= last["eval_accuracy_low/chat"]
        <= last["eval_accuracy/chat"]
        <= last["eval_accuracy_high/chat"]
        <= 1
    )
    assert not any(key.startswith(("kl", "forgetting")) for line in lines for key in line)
