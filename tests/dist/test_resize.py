"""A run that goes on with other ranks, at another stage, with other micro-batches: the same tokens, the same model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.dist.session import config_of, session_of
from tests.dist.test_resume import saver_of
from trainer.checkpoint.layout import STATE, step_dir
from trainer.checkpoint.shard_file import WEIGHT
from trainer.checkpoint.shards import Shards, open_shards

PACKS = 6
"""A step; shared evenly by one, two and three ranks, and not by four."""
STEPS = 8
WORDS = [
    f"train.global_batch_tokens={PACKS * 64}",
    f"train.max_steps={STEPS}",
    "checkpoint.every_steps=2",
    "checkpoint.keep_last=9",
    "data.sources.text.role=replay",
    "replay.ratio=0.3",
    "evaluate.forgetting=false",
    "data.max_validation_packs=2",
]
FP32, BF16 = 1e-6, 1e-3
"""Absolute, of a loss: sums are added up in another order."""


def go_on(mesh: Any, workspace: str, run_dir: str, start: str | None, overrides: list[str]) -> None:
    """Train to the end, from a copy of a checkpoint if one is given."""
    from trainer.run import training

    if start is not None and mesh.is_first:
        shutil.copytree(start, step_dir(Path(run_dir), int(start[-8:])))
    mesh.barrier()
    assert training.run_training(config_of(workspace, run_dir, *WORDS, *overrides)).value == "finished"


def digests(run_dir: Path) -> dict[int, str]:
    """Return by step the digest that chains the tokens of all steps up to it."""
    rows = [json.loads(line) for line in (run_dir / "ledger.jsonl").read_text().splitlines()]
    return {row["step"]: row["data_digest"] for row in rows if row["event"] == "saved"}


def logged(run_dir: Path, key: str) -> dict[int, float]:
    """Return by step a number that is logged of every one."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row[key] for row in rows if key in row}


def chain(
    pool: Any, workspace: str, folder: Path, legs: list[tuple[int, list[str]]], words: list[str]
) -> None:
    """Train whole, then from its step 2 as the first leg says, from that one's step 4 as the second, and so on."""
    first = folder / "whole"
    pool(2).run(go_on, workspace=workspace, run_dir=str(first), start=None, overrides=words)
    before = first
    for index, (num_ranks, own) in enumerate(legs):
        now, step = folder / f"leg-{index}", 2 * (index + 1)
        start = str(step_dir(before, step))
        pool(num_ranks).run(
            go_on, workspace=workspace, run_dir=str(now), start=start, overrides=[*words, *own]
        )
        before = now


def assert_same(whole: Path, other: Path, first: int, allowed: float) -> None:
    """Tokens and learning rates of all steps are equal, whoever took them; losses and the end within rounding."""
    before, after = digests(whole), digests(other)
    assert sorted(after) == list(range(first + 2, STEPS + 1, 2))
    assert {step: before[step] for step in after} == after
    one, two = logged(whole, "lr"), logged(other, "lr")
    assert len(set(one.values())) > 3 and two == {step: one[step] for step in two}
    one, two = logged(whole, "loss"), logged(other, "loss")
    assert sorted(two) == list(range(first + 1, STEPS + 1))
    worst = max(abs(one[step] - two[step]) for step in two)
    assert worst <= allowed, (other.name, worst)
    states = [json.loads((step_dir(run, STEPS) / STATE).read_text()) for run in (whole, other)]
    for key in (
        "step",
        "tokens_seen",
        "targets_by_source",
        "tokens_by_source",
        "plan",
        "data_digest",
        "replay_ratio",
    ):
        assert states[0][key] == states[1][key], key
    ends = [open_shards(step_dir(run, STEPS)) for run in (whole, other)]
    assert_close(*ends, 10 * allowed)


def assert_close(one: Shards, two: Shards, allowed: float) -> None:
    assert one.shapes == two.shapes and len(one.shapes) > 3 and one.scalars == two.scalars
    for name, shape in one.shapes.items():
        assert one.kinds(name) == two.kinds(name) == ["exp_avg", "exp_avg_sq", "weight"]
        for kind in one.kinds(name):
            held = []
            for shards in (one, two):
                held.append(torch.empty(torch.Size(shape).numel()))
                shards.fill(kind, name, 0, held[-1])
            assert (held[0] - held[1]).abs().max() <= allowed, (kind, name)


@pytest.mark.parametrize(
    ("stage", "words", "legs"),
    [
        (2, [], [(1, []), (3, ["zero.stage=3"]), (2, [])]),
        pytest.param(
            3,
            [
                "tune.method=lora",
                "tune.r=4",
                "replay.controller=hold",
                "replay.epsilon=1",
                "evaluate.every_steps=2",
            ],
            [(4, ["zero.stage=1"]), (1, ["zero.stage=0"]), (2, [])],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            2,
            ["tune.method=freeze", "tune.last_layers=1"],
            [(1, ["zero.stage=1"]), (3, ["zero.stage=3"])],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_every_later_step_has_the_tokens_and_the_loss_of_a_run_that_was_never_moved(
    pool, workspace, tmp_path, stage, words, legs
):
    """Other tokens: the position or the shares of replay hang on ranks. Another loss: weights, moments or steps are
    lost, or put in the wrong place.
    """
    chain(pool, workspace, tmp_path, legs, [f"zero.stage={stage}", *words])
    ratios = logged(tmp_path / "whole", "replay_ratio")
    assert (len(set(ratios.values())) > 2) == ("replay.controller=hold" in words), (
        "it is moved where it is asked to be"
    )
    for index in range(len(legs)):
        assert_same(tmp_path / "whole", tmp_path / f"leg-{index}", 2 * (index + 1), FP32)


def read_for_resuming(mesh: Any, workspace: str, run_dir: str, words: list[str]) -> list[int]:
    """Resume, and return how many weights this rank read, and how many there are."""
    from trainer.checkpoint import shards

    read: list[int] = []
    whole = shards.Shards.fill

    def fill(self: Any, kind: str, name: str, begin: int, out: Any) -> None:
        read.append(out.numel() if kind == WEIGHT else 0)
        whole(self, kind, name, begin, out)

    shards.Shards.fill = fill  # type: ignore[method-assign]
    try:
        with session_of(config_of(workspace, run_dir, *WORDS, *words)) as session:
            assert saver_of(session).resume(goes_on=True).step == STEPS
            shapes = open_shards(step_dir(Path(run_dir), STEPS)).shapes.values()
    finally:
        shards.Shards.fill = whole  # type: ignore[method-assign]
    return [sum(read), sum(torch.Size(shape).numel() for shape in shapes)]


@pytest.mark.parametrize("stage", [1, 3])
def test_a_rank_reads_its_own_share_of_what_one_rank_saved(pool, workspace, tmp_path, stage):
    """No rank holds the whole: a model whose optimizer no node has room for is gone on with all the same."""
    pool(1).run(go_on, workspace=workspace, run_dir=str(tmp_path), start=None, overrides=[])
    words = [f"zero.stage={stage}"]
    found = pool(2).run(read_for_resuming, workspace=workspace, run_dir=str(tmp_path), words=words)
    for read, total in found:
        assert 0.4 * total < read < 0.6 * total
    assert sum(read for read, _ in found) >= found[0][1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "words", "legs"),
    [
        (1, ["zero.dtype=bf16"], [(3, ["zero.stage=3"]), (1, []), (2, ["zero.stage=2"])]),
        (3, ["zero.dtype=bf16", "tune.method=lora"], [(1, ["zero.stage=1"]), (3, []), (2, ["zero.stage=1"])]),
        (
            1,
            ["train.micro_batch_size=3"],
            [(1, ["train.micro_batch_size=6"]), (3, ["train.micro_batch_size=2"])],
        ),
        (3, ["model.path={workspace}/tied"], [(1, []), (2, ["zero.offload_optimizer=cpu"])]),
    ],
)
def test_the_same_in_bf16_with_other_micro_batches_tied_and_offloaded(
    pool, workspace, tmp_path, stage, words, legs
):
    given = [word.format(workspace=workspace) for word in words]
    chain(pool, workspace, tmp_path, legs, [f"zero.stage={stage}", *given])
    allowed = BF16 if "zero.dtype=bf16" in words else FP32
    for index in range(len(legs)):
        assert_same(tmp_path / "whole", tmp_path / f"leg-{index}", 2 * (index + 1), allowed)
