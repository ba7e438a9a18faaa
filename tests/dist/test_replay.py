"""Replay under a controller: the same on any number of ranks, and a resumed run decides the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.dist.session import config_of
from tests.dist.test_resume import contents
from tests.helpers.tiny import write_documents
from trainer.checkpoint.layout import STATE, step_dir

SOURCES = {"old": "replay", "general": "probe"}


def config_for(workspace: str, data: str, run_dir: Path, *overrides: str) -> Any:
    sources = []
    for name, role in SOURCES.items():
        key = f"data.sources.{name}"
        sources += [f"{key}.path={data}/{name}.jsonl", f"{key}.role={role}", f"{key}.format=ids"]
        sources += [f"{key}.columns.loss_mask=loss_mask"]
    return config_of(
        workspace,
        run_dir,
        *sources,
        f"data.cache_dir={data}/cache",
        "replay.ratio=0.3",
        "replay.controller=hold",
        "replay.epsilon=0.0001",
        "evaluate.every_steps=2",
        "checkpoint.every_steps=4",
        "train.max_steps=8",
        "optim.lr=0.02",
        *overrides,
    )


def make_data(mesh: Any, workspace: str, data: str, overrides: tuple[str, ...] = ()) -> None:
    from trainer.command.prepare import prepare_data

    for seed, name in enumerate(SOURCES):
        write_documents(Path(data) / f"{name}.jsonl", 60, 50 + seed, ragged=True)
    prepare_data(config_for(workspace, data, Path(data) / "unused", *overrides))


def train(
    mesh: Any, workspace: str, data: str, run_dir: str, copy_from: str | None, overrides: list[str]
) -> None:
    from trainer.run import training

    if copy_from and mesh.is_first:
        shutil.copytree(step_dir(Path(copy_from), 4), step_dir(Path(run_dir), 4))
    mesh.barrier()
    assert training.run_training(config_for(workspace, data, Path(run_dir), *overrides)).value == "finished"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def decisions(run_dir: Path) -> list[tuple[int, float]]:
    return [(e["step"], e["ratio"]) for e in lines(run_dir / "ledger.jsonl") if e["event"] == "steered"]


@pytest.fixture(scope="module")
def data(pool: Any, workspace: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("replay"))
    pool(1).run(make_data, workspace=workspace, data=folder)
    return folder


def test_a_resumed_run_decides_and_draws_what_the_whole_run_did(pool, workspace, data, tmp_path):
    """Only ratios differ: the controller's decisions or the base losses are not in the checkpoint. Only the
    digest differs: the plan's cursor is not, or a decision acts on the step that was being read.
    """
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for run_dir, source in ((whole, None), (resumed, str(whole))):
        pool(2).run(
            train, workspace=workspace, data=data, run_dir=str(run_dir), copy_from=source, overrides=[]
        )
    before, after = decisions(whole), decisions(resumed)
    assert [step for step, _ in before] == [2, 4, 6, 8] and len({ratio for _, ratio in before}) > 1
    assert after == [d for d in before if d[0] > 4]
    states = [json.loads((step_dir(r, 8) / STATE).read_text()) for r in (whole, resumed)]
    for state in states:
        del state["attempts"]
    assert states[0] == states[1]
    assert len(states[0]["ratio_changes"]) == 4 and set(states[0]["base_losses"]) == {
        "chat",
        "text",
        "old",
        "general",
    }
    targets = states[0]["targets_by_source"]
    assert targets["general"] == 0 and targets["old"] > 0
    rows = [row for row in lines(whole / "metrics.jsonl") if "replay_share" in row]
    assert rows[-1]["replay_share"] == pytest.approx(targets["old"] / sum(targets.values()))
    assert rows[0]["replay_ratio"] == 0.3


def test_a_run_that_goes_on_with_other_ranks_decides_and_draws_the_same(pool, workspace, data, tmp_path):
    """Another ratio: what the controller has seen is of ranks. Losses are rounded otherwise, and ratios with them."""
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    for num_ranks, run_dir, source in ((2, whole, None), (1, moved, str(whole))):
        words = {"workspace": workspace, "data": data, "run_dir": str(run_dir), "copy_from": source}
        pool(num_ranks).run(train, **words, overrides=[])
    before, after = dict(decisions(whole)), dict(decisions(moved))
    assert list(after) == [6, 8] and len(set(before.values())) > 1
    assert after == pytest.approx({step: before[step] for step in after}, abs=1e-5)
    states = [json.loads((step_dir(r, 8) / STATE).read_text()) for r in (whole, moved)]
    for key in ("data_digest", "plan", "targets_by_source", "tokens_by_source"):
        assert states[0][key] == states[1][key], key
    assert states[0]["base_losses"] == states[1]["base_losses"]
    assert [step for step, *_ in states[1]["ratio_changes"]] == [
        step for step, *_ in states[0]["ratio_changes"]
    ]


def test_one_rank_and_two_consume_the_same(pool, workspace, data, tmp_path):
    digests = {}
    for num_ranks in (1, 2):
        run_dir = tmp_path / str(num_ranks)
        pool(num_ranks).run(
            train,
            workspace=workspace,
            data=data,
            run_dir=str(run_dir),
            copy_from=None,
            overrides=["replay.controller=none", "zero.stage=1"],
        )
        events = lines(run_dir / "ledger.jsonl")
        digests[num_ranks] = [(e["step"], e["data_digest"]) for e in events if e["event"] == "saved"]
    assert digests[1] == digests[2] and len(digests[1]) == 2


ANSWERS_TO_KL = ["replay.epsilon=9", "replay.epsilon_kl=0.0001", "data.seq_len=192"]
ANSWERS_TO_KL += ["train.global_batch_tokens=384", "zero.stage=3", "zero.dtype=bf16", "train.max_steps=6"]


def decided(run_dir: Path) -> list[dict[str, Any]]:
    """Return all that the ledger says of the ratio, but not when and in which start."""
    found = [event for event in lines(run_dir / "ledger.jsonl") if event["event"] == "steered"]
    return [
        {k: v for k, v in event.items() if k not in ("at", "time", "attempt", "chain")} for event in found
    ]


def refusal(mesh: Any, workspace: str, data: str, run_dir: str, copy_from: str) -> str:
    """Go on where nobody knows what the base said any more; return the sentence."""
    from trainer.errors import DataError

    try:
        train(mesh, workspace, data, run_dir, copy_from, ANSWERS_TO_KL)
    except DataError as error:
        return str(error)
    return "it went on"


@pytest.mark.slow
def test_a_run_whose_ratio_answers_to_the_kl_on_conversations_goes_on_bit_for_bit(
    pool, workspace, data, tmp_path
):
    """No KL in an event: it is not taken at evaluations. The loss decides: the worse of the two does not. Other weights
    alone: what is drawn after a decision is that of another ratio. Went on without the base: by the loss alone.
    """
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    words = {"workspace": workspace, "data": data}
    pool(1).run(make_data, **words, overrides=tuple(ANSWERS_TO_KL))
    for run_dir, source in ((whole, None), (resumed, str(whole))):
        pool(2).run(train, **words, run_dir=str(run_dir), copy_from=source, overrides=ANSWERS_TO_KL)
    found = decided(whole)
    measured = {row["step"]: row for row in lines(whole / "metrics.jsonl") if "kl/fixed_conversations" in row}
    assert [event["step"] for event in found] == [2, 4, 6]
    for event in found:
        assert event["decided_by"] == "kl" and event["ratio"] == pytest.approx(event["previous"] + 0.02)
        assert event["kl_nats"] == measured[event["step"]]["kl/fixed_conversations"] > 0.001
    assert decided(resumed) == found[2:]
    assert contents(step_dir(whole, 6)) == contents(step_dir(resumed, 6))
    states = [json.loads((step_dir(run_dir, 6) / STATE).read_text()) for run_dir in (whole, resumed)]
    for state in states:
        del state["attempts"]
    assert states[0] == states[1] and len(states[0]["ratio_changes"]) == 3
    shutil.rmtree(Path(data) / "cache" / "evaluations")
    said = pool(2).run(refusal, **words, run_dir=str(tmp_path / "alone"), copy_from=str(whole))
    assert "`replay.epsilon_kl` must be null where nobody knows what the base said" in said[0]
    assert "evaluate.checkpoint=base" in said[0] and said[0] == said[1]
