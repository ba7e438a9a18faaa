"""Replay that is chosen by what the model is losing: the same on any ranks, and a resumed run decides the same."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from tests.dist.session import config_of, old_replay, session_of, take_steps
from tests.helpers.tiny import SEQ_LEN, write_documents
from trainer.checkpoint.layout import STATE, step_dir
from trainer.checkpoint.state import read_state
from trainer.cli import run_command
from trainer.command.verify import _tokens
from trainer.config.snapshot import config_path
from trainer.config.store import load_config

NUM_STEPS = 10
LORA = ("tune.method=lora", "tune.r=4", "optim.lr=0.1")
DECIDED = ("step", "pool", "begin", "packs", "num_wanted", "num_candidates")


def config_for(workspace: str, data: str, run_dir: str | Path, *overrides: str) -> Any:
    return config_of(
        workspace,
        run_dir,
        *old_replay(data),
        *("replay.choice=losing", "replay.choice_every=3", "replay.choice_of=3"),
        f"train.global_batch_tokens={6 * SEQ_LEN}",
        *("checkpoint.every_steps=3", "checkpoint.keep_last=9"),
        f"train.max_steps={NUM_STEPS}",
        "optim.lr=0.01",
        *overrides,
    )


def make_data(mesh: Any, workspace: str, data: str) -> None:
    from trainer.command.prepare import prepare_data

    write_documents(Path(data) / "old.jsonl", 120, 50, ragged=True)
    prepare_data(config_for(workspace, data, Path(data) / "unused"))


@pytest.fixture(scope="module")
def data(pool: Any, workspace: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("chosen"))
    pool(1).run(make_data, workspace=workspace, data=folder)
    return folder


def train(
    mesh: Any, workspace: str, data: str, run_dir: str, overrides: list[str], copy_from: str | None = None
) -> None:
    from trainer.config.snapshot import config_path, freeze
    from trainer.config.store import load_config
    from trainer.run import training

    config = config_for(workspace, data, run_dir, *overrides)
    if mesh.is_first:
        Path(run_dir).mkdir(exist_ok=True)
        freeze(config, Path(run_dir))
    if copy_from and mesh.is_first:
        shutil.copytree(step_dir(Path(copy_from), 3), step_dir(Path(run_dir), 3))
    mesh.barrier()
    assert training.run_training(load_config(config_path(Path(run_dir)), [])).value == "finished"


def state_of(run_dir: Path, step: int = NUM_STEPS) -> dict[str, Any]:
    return dict(json.loads((step_dir(run_dir, step) / STATE).read_text()))


def events(run_dir: Path, name: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run_dir / "ledger.jsonl").read_text().splitlines()]
    return [event for event in found if event["event"] == name]


def decided(run_dir: Path) -> list[dict[str, Any]]:
    return [{key: event[key] for key in DECIDED} for event in events(run_dir, "chose")]


def test_a_resumed_run_decides_and_draws_what_the_whole_run_did(pool, workspace, data, tmp_path, capsys):
    """Other choices: the base was asked after the checkpoint was loaded, or a candidate depends on what was read ahead.
    Other data alone: the decision that was made at the checkpoint is not in it.
    """
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for run_dir, source in ((whole, None), (resumed, str(whole))):
        pool(2).run(
            train, workspace=workspace, data=data, run_dir=str(run_dir), overrides=[], copy_from=source
        )
    assert [event["step"] for event in decided(whole)] == [3, 6]
    assert decided(resumed) == decided(whole)[1:]
    before, after = (state_of(run_dir) for run_dir in (whole, resumed))
    for state in (before, after):
        del state["attempts"]
    assert before == after and [choice["step"] for choice in before["choices"]] == [3, 6]
    assert len(state_of(whole, 3)["choices"]) == 1, "what was decided after step 3 is in its checkpoint"
    assert run_command(["verify", str(whole)]) == 0
    assert "those that the configuration draws (4 digests compared)" in capsys.readouterr().out
    config, state = load_config(config_path(whole), []), read_state(step_dir(whole, NUM_STEPS) / STATE)
    assert not _tokens(config, dataclasses.replace(state, choices=[]), Console()).is_sound
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    rises = [
        (row["replay_rise_chosen/old"], row["replay_rise/old"]) for row in rows if "choice_time_s" in row
    ]
    assert len(rises) == 2 and all(chosen > of_all for chosen, of_all in rises)


@pytest.mark.parametrize(
    "others",
    [
        [(2, ["zero.stage=3"])],
        pytest.param([(3, ["zero.stage=3"]), (2, ["train.sequence_parallel=2"])], marks=pytest.mark.slow),
        pytest.param([(2, ["zero.stage=3", *LORA]), (3, ["zero.stage=0", *LORA])], marks=pytest.mark.slow),
        pytest.param(
            [(1, ["zero.stage=0"]), (2, ["train.micro_batch_size=3"]), (2, ["model.checkpoint_layers=1"])],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_any_number_of_ranks_at_any_stage_chooses_and_draws_the_same(pool, workspace, data, tmp_path, others):
    """Other packs: what is said of one depends on its neighbours or on whose rank asks."""
    words = [word for word in LORA if word in others[0][1]]
    variants = [(1, ["zero.stage=1", *words]), *others]
    found = []
    for number, (num_ranks, overrides) in enumerate(variants):
        run_dir = tmp_path / str(number)
        pool(num_ranks).run(train, workspace=workspace, data=data, run_dir=str(run_dir), overrides=overrides)
        saved = [(event["step"], event["data_digest"]) for event in events(run_dir, "saved")]
        found.append((decided(run_dir), saved))
    assert len(found[0][0]) == 2 and len(found[0][1]) == 4
    for other in found[1:]:
        assert other == found[0]


def rises(mesh: Any, workspace: str, data: str, run_dir: str, words: list[str]) -> Any:
    """Train a little; return the rises that choose, and those of plain models without any code of ours."""
    from transformers import AutoModelForCausalLM

    from trainer.checkpoint.state import TrainState
    from trainer.run.chooser import build_chooser

    with session_of(config_for(workspace, data, run_dir, *words)) as session:
        mixing = session.mixing()
        chooser = build_chooser(session, mixing)
        assert chooser is not None and mixing.choices is not None
        (candidates,) = mixing.choices.candidates(TrainState(step=3))
        at_start = chooser._rises(candidates.refs)
        take_steps(session, 3)
        ours = chooser._rises(candidates.refs)
        base = AutoModelForCausalLM.from_pretrained(Path(workspace) / "model", dtype=torch.float64)
        store = [one.train for one in session.stores.values()][candidates.refs[0].source]
        policy, sums = session.policy, []
        expected = []
        for ref in candidates.refs:
            pack = store.pack(ref.pack)
            begin, was = 0, 0.0
            for length in pack.lengths:
                part = slice(begin, begin + length)
                tokens = torch.from_numpy(np.array(pack.tokens[part]))
                marks = torch.from_numpy(np.array(pack.supervised[part]))[1:]
                with torch.no_grad():
                    log_probs = base(input_ids=tokens[None]).logits[0, :-1].log_softmax(-1)
                was -= float(log_probs.gather(1, tokens[1:, None])[:, 0][marks].sum())
                begin += length
            expected.append(was)
            with policy.evaluating():
                from trainer.data.pack.refs import read_micro_batch

                stores = [one.train for one in session.stores.values()]
                nll_N = policy.nll(read_micro_batch(stores, [ref], session.pad_id)).nll_N
            sums.append(float(nll_N.double().sum()))
        targets = [int(store.pack_targets[ref.pack]) for ref in candidates.refs]
        plain = [(now - was) / num for now, was, num in zip(sums, expected, targets, strict=True)]
    return at_start, ours, plain


@pytest.mark.parametrize("words", [["zero.stage=3"], pytest.param([*LORA], marks=pytest.mark.slow)])
def test_a_rise_is_the_mean_loss_of_a_pack_now_without_that_of_the_base(
    pool, workspace, data, tmp_path, words
):
    """At the start it is 0; later the loss that training takes, less that of plain transformers' base in float64."""
    results = pool(2).run(rises, workspace=workspace, data=data, run_dir=str(tmp_path), words=words)
    assert results[0] == results[1]
    at_start, ours, plain = results[0]
    assert max(map(abs, at_start)) < 1e-6
    assert ours == pytest.approx(plain, abs=2e-5) and max(map(abs, plain)) > 0.01
