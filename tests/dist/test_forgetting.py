"""The forgetting measurement on real ranks: the same on one and two, kept for later runs, and gated."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.dist.session import held_out_losses, loader_of, session_of
from tests.dist.test_replay import config_for, lines, make_data
from trainer.checkpoint.layout import step_dir
from trainer.errors import CheckpointError, ConfigError, DataError
from trainer.evaluate.record import BASE_FILE

OVERRIDES = ["replay.controller=none", "replay.ratio=0.2", "zero.stage=3"]


@pytest.fixture(scope="module")
def data(pool: Any, workspace: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("forgetting"))
    pool(1).run(make_data, workspace=workspace, data=folder)
    return folder


def train(mesh: Any, workspace: str, data: str, run_dir: str, overrides: list[str]) -> None:
    from trainer.config.snapshot import freeze
    from trainer.run import training

    config = config_for(workspace, data, Path(run_dir), *OVERRIDES, *overrides)
    if mesh.is_first:
        freeze(config, Path(run_dir))
    mesh.barrier()
    assert training.run_training(config).value == "finished"


@pytest.fixture(scope="module")
def run_dirs(
    pool: Any, workspace: str, data: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Path]:
    """Train the same run on one rank and on two; only the second finds the base evaluated in the cache."""
    folder = tmp_path_factory.mktemp("runs")
    for num_ranks in (1, 2):
        pool(num_ranks).run(
            train, workspace=workspace, data=data, run_dir=str(folder / str(num_ranks)), overrides=[]
        )
    return {num_ranks: folder / str(num_ranks) for num_ranks in (1, 2)}


def forgetting(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "forgetting.json").read_text())


def test_the_measurement_is_what_the_evaluations_of_the_run_said(run_dirs):
    """A difference: pieces are lost on the way from the ranks, or base and tuned are swapped."""
    record = forgetting(run_dirs[1])
    rows = [row for row in lines(run_dirs[1] / "metrics.jsonl") if "eval_mean" in row]
    assert {entry["name"]: entry["role"] for entry in record["sets"]} == {
        "chat": "target",
        "text": "target",
        "old": "replay",
        "general": "probe",
    }
    for entry in record["sets"]:
        key = f"eval/{entry['name']}"
        assert entry["base_nats"] == pytest.approx(rows[0][key]) != entry["tuned_nats"]
        assert entry["tuned_nats"] == pytest.approx(rows[-1][key])
        assert entry["change_low"] <= entry["change_nats"] <= entry["change_high"]
        assert entry["num_documents"] > 1 and entry["num_bytes"] > 0
    assert {entry["prompts"] for entry in record["kl"]} == {"chat", "text", "fixed_conversations"}
    assert all(entry["nats"] > 0 for entry in record["kl"])
    replay = record["replay"]
    assert replay["ratio_asked"] == pytest.approx(0.2) and abs(replay["ratio_reached"] - 0.2) < 0.1
    assert [entry["name"] for entry in replay["sources"]] == ["chat", "text", "old"]
    assert "Run report" in (run_dirs[1] / "report.html").read_text()


def test_two_ranks_measure_what_one_does(run_dirs):
    """A difference: ranks evaluate some packs twice, or see another order of pieces."""
    one, two = (forgetting(run_dirs[ranks]) for ranks in (1, 2))
    for a, b in zip(one["sets"], two["sets"], strict=True):
        assert (a["num_documents"], a["num_targets"]) == (b["num_documents"], b["num_targets"])
        assert a["base_nats"] == pytest.approx(b["base_nats"], rel=1e-6)
        assert a["tuned_nats"] == pytest.approx(b["tuned_nats"], rel=1e-4)
    assert [e["num_tokens"] for e in one["kl"]] == [e["num_tokens"] for e in two["kl"]]


def test_a_base_that_is_known_is_not_evaluated_again(run_dirs):
    assert (run_dirs[1] / BASE_FILE).read_bytes() == (run_dirs[2] / BASE_FILE).read_bytes()
    logs = "".join(path.read_text() for path in (run_dirs[2] / "logs").rglob("*rank*0*"))
    assert "The base model's evaluation is known" in logs


def refusals(mesh: Any, workspace: str, data: str, run_dir: str, other: str) -> list[str]:
    """Return what is said of another base, a gate on an unknown set, a failing gate, and other checkpoints."""
    from trainer.cli import run_command
    from trainer.command.evaluate import read_measurement, refuse_failing, run_evaluation
    from trainer.config.store import load_config
    from trainer.run import training

    said = []
    Path(other).mkdir()
    shutil.copy(Path(run_dir) / BASE_FILE, other)
    with pytest.raises(DataError) as caught:
        training.run_training(
            config_for(workspace, data, Path(other), *OVERRIDES, f"model.path={workspace}/tied")
        )
    said.append(str(caught.value))
    frozen = Path(run_dir) / "config.yaml"
    with pytest.raises(ConfigError) as refused:
        run_evaluation(load_config(frozen, ["gate.sets.absent.max_rise_nats=1"]))
    said.append(str(refused.value))
    path = Path(run_dir) / "forgetting.json"
    record = json.loads(path.read_text())
    record["recovery"] = {
        "set": "old",
        "steps": 1,
        "base_nats": 1.0,
        "tuned_nats": 2.0,
        "recovered_nats": 1.5,
    }
    path.write_text(json.dumps(record))
    strict = load_config(frozen, ["gate.sets.general.max_rise_nats=0", "gate.sets.target.min_drop_nats=99"])
    assert run_evaluation(strict) is False
    assert run_evaluation(load_config(frozen, ["gate.sets.general.max_rise_nats=99"])) is True
    logs = sorted(one.name for one in (Path(run_dir) / "logs").iterdir())
    assert logs[0] == "attempt-1" and logs[-2:] == ["evaluation-2", "evaluation-3"], "they are no attempts"
    assert json.loads(path.read_text())["recovery"]["recovered_nats"] == 1.5, (
        "evaluating again lost the probe"
    )
    record["recovery"] = None
    path.write_text(json.dumps(record))
    with pytest.raises(ConfigError) as unwanted:
        refuse_failing(strict, step_dir(Path(run_dir), 8).name)
    said.append(str(unwanted.value))
    with pytest.raises(CheckpointError) as stale:
        read_measurement(Path(run_dir), "step-00000004")
    said.append(str(stale.value))
    said.append(str(run_command(["train", "--config", str(frozen), "gate.sets.general.max_rise_nats=-1"])))
    cache = Path(strict.data.cache_dir) / "evaluations"
    for kept in (Path(run_dir) / BASE_FILE, cache):
        kept.rename(f"{kept}.aside")
    with pytest.raises(CheckpointError) as baseless:
        run_evaluation(strict)
    said.append(str(baseless.value))
    for kept in (Path(run_dir) / BASE_FILE, cache):
        shutil.rmtree(kept, ignore_errors=True)
        Path(f"{kept}.aside").rename(kept)
    return said


def test_another_base_and_a_failing_gate_are_refused(pool, workspace, data, run_dirs, tmp_path, capsys):
    base, absent, failing, stale, code, baseless = pool(1).run(
        refusals, workspace=workspace, data=data, run_dir=str(run_dirs[1]), other=str(tmp_path / "other")
    )[0]
    assert "must hold the evaluation of this run's base model" in base
    assert absent.startswith("`gate.sets.absent` must be about a set with held-out text (")
    assert failing.startswith("`gate` must pass before step-00000008 is exported")
    assert "must be about step-00000004, but is about step-00000008" in stale
    assert code == "2"
    assert f"must hold {BASE_FILE} for the gate, but has none instead. Evaluate the base first" in baseless


def interpolate(mesh: Any, run_dir: str) -> list[bool]:
    """Sweep alpha, then export the base end and tell whether it is the base."""
    import torch
    from safetensors.torch import load_file

    from trainer.command.export import export_model
    from trainer.command.interpolate import interpolate
    from trainer.config.store import load_config

    frozen = Path(run_dir) / "config.yaml"
    assert interpolate(load_config(frozen, ["export.interpolate=0.0:1.0:0.5"])) == 0
    config = load_config(
        frozen, ["export.alpha=0", "export.dtype=float32", f"export.output_dir={run_dir}/zero"]
    )
    assert export_model(config) == 0
    base, zero = (
        {
            name: tensor
            for file in Path(folder).glob("*.safetensors")
            for name, tensor in load_file(file).items()
        }
        for folder in (config.model.path, Path(run_dir) / "zero")
    )
    return [torch.equal(base[name], zero[name]) for name in base]


def test_an_interpolation_ends_in_the_base_and_in_the_tuned_model(pool, run_dirs):
    """A difference at alpha 1: tensors of the checkpoint have other names in the model, and stay the base's."""
    (same,) = pool(1).run(interpolate, run_dir=str(run_dirs[1]))
    assert len(same) > 10 and all(same)
    record = json.loads((run_dirs[1] / "interpolation.json").read_text())
    measured = {entry["name"]: entry for entry in forgetting(run_dirs[1])["sets"]}
    assert [point["alpha"] for point in record["points"]] == [0.0, 0.5, 1.0]
    for name, entry in measured.items():
        first, middle, last = (point["losses"][name] for point in record["points"])
        assert first == pytest.approx(entry["base_nats"], rel=1e-5)
        assert last == pytest.approx(entry["tuned_nats"], rel=1e-5)
        assert middle != first
    told = {entry["prompts"]: entry["nats"] for entry in forgetting(run_dirs[1])["kl"]}
    assert all(set(point["kl"]) == set(told) for point in record["points"]) and told
    for name, nats in told.items():
        first, middle, last = (point["kl"][name] for point in record["points"])
        assert abs(first) < 1e-6 < middle < last == pytest.approx(nats, rel=1e-4)
    assert "Between the base and the tuned model" in (run_dirs[1] / "report.html").read_text()


def recover(
    mesh: Any, workspace: str, data: str, run_dir: str, steps: int, words: tuple[str, ...] = ()
) -> list[Any]:
    """Return what the probe says, and held-out losses before and after it."""
    from trainer.checkpoint.state import TrainState
    from trainer.run.parts import RunParts
    from trainer.run.recovery import probe_recovery

    config = config_for(
        workspace,
        data,
        Path(run_dir),
        *OVERRIDES,
        f"evaluate.recovery_steps={steps}",
        "optim.lr=0.05",
        *words,
    )
    with session_of(config) as session:
        mixing = session.mixing()
        loader = loader_of(session)
        asked_to_stop = SimpleNamespace(requested=False)
        parts = RunParts(
            session.policy, None, loader, None, None, mixing, *[None] * 3, asked_to_stop, *[None] * 3
        )
        before = held_out_losses(session.policy, session.held_out())
        state = TrainState(last_losses=before, base_losses={"general": before["general"] - 1.0})
        found = probe_recovery(parts, config, session.stores, session.held_out(), mixing, state)
        loader.close()
        after = held_out_losses(session.policy, session.held_out())
    return [found and dataclasses.asdict(found), before, after]


@pytest.mark.slow
def test_the_recovery_probe_trains_on_replay_and_measures_the_set_that_rose(pool, workspace, data, tmp_path):
    """A set that does not fall: the probe trains on target data, or its steps are not applied."""
    arguments = {"workspace": workspace, "data": data, "run_dir": str(tmp_path)}
    for found, before, after in pool(2).run(recover, steps=6, **arguments):
        assert found["set"] == "general" and found["steps"] == 6
        assert found["tuned_nats"] == before["general"] and found["base_nats"] == before["general"] - 1.0
        assert (
            found["recovered_nats"] == pytest.approx(after["general"])
            and after["general"] < before["general"]
        )
    plain = pool(2).run(recover, steps=6, **arguments)
    assert pool(2).run(recover, steps=6, words=("optim.base_decay=15",), **arguments) == plain, (
        "nothing is pulled"
    )
    ((found, before, after),) = pool(1).run(recover, steps=0, **arguments)
    assert found is None and before == after
