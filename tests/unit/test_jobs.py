"""What the commands do outside a process group: finding checkpoints, counting ranks, inputs."""

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.helpers.tiny import save_llama, tiny_config, write_documents
from trainer.checkpoint.commit import commit
from trainer.checkpoint.layout import MANIFEST, STATE, step_dir
from trainer.checkpoint.manifest import Lineage, Manifest
from trainer.checkpoint.named import find_checkpoint
from trainer.checkpoint.state import TrainState, write_state
from trainer.command.before_ranks import check_draws
from trainer.command.prepare import ensure_inputs
from trainer.config.data import Role
from trainer.data.store.prepared import open_all
from trainer.dist.mesh import alone
from trainer.engine.states import seal
from trainer.errors import CheckpointError, DataError, TopologyError
from trainer.model.tokenizer import configured_tokenizer
from trainer.start.ranks import count_ranks

ALONE = alone(torch.device("cpu"))


def save(run_dir: Path, step: int, best_step: int | None) -> Path:
    def write(staging):
        write_state(staging / STATE, TrainState(step=step, best_step=best_step))
        return [seal(staging / STATE)]

    return commit(
        run_dir, Manifest(step, 1, 1, "config", "data", Lineage("one", 1, None), {}, {}), write, ALONE
    )


@pytest.fixture
def run_dir(tmp_path):
    for step in (10, 20, 30):
        save(tmp_path, step, best_step=20)
    return tmp_path


@pytest.mark.parametrize(("which", "step"), [("last", 30), ("best", 20), ("10", 10), ("00030", 30)])
def test_a_checkpoint_is_found_by_what_a_person_calls_it(run_dir, which, step):
    assert find_checkpoint(run_dir, which) == step_dir(run_dir, step)


@pytest.mark.parametrize("which", ["newest", "", "-1", "step-00000010", "1.5"])
def test_any_other_name_is_refused_with_the_names_that_work(run_dir, which):
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(run_dir, which)
    assert f"must be last, best or a step number, but is '{which}' instead" in str(caught.value)


def test_a_step_that_was_not_saved_is_refused_with_those_that_were(run_dir):
    with pytest.raises(
        CheckpointError, match=r"`15` must still be there, but .* of steps 10, 20, 30\. Choose"
    ):
        find_checkpoint(run_dir, "15")


def test_the_last_is_the_newest_that_verifies_and_a_damaged_one_cannot_be_named(run_dir):
    (step_dir(run_dir, 30) / STATE).write_text("{}")
    assert find_checkpoint(run_dir, "last") == step_dir(run_dir, 20)
    with pytest.raises(CheckpointError, match=r"step-00000030 does not verify: .* Choose another"):
        find_checkpoint(run_dir, "30")


@pytest.mark.parametrize("best_step", [5, None], ids=["gone", "never evaluated"])
def test_a_run_that_has_no_best_checkpoint_says_which_there_are(tmp_path, best_step):
    save(tmp_path, 10, best_step)
    with pytest.raises(CheckpointError, match=r"`best` must .* 10\. Choose") as caught:
        find_checkpoint(tmp_path, "best")
    assert "-1" not in str(caught.value).replace(str(tmp_path), "")


@pytest.mark.parametrize("which", ["last", "best", "10"])
def test_a_run_directory_without_a_valid_checkpoint_is_named(tmp_path, which):
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"holds none instead\. Train first\.") as caught:
            find_checkpoint(tmp_path / "run", which)
        assert str(tmp_path / "run") in str(caught.value)
        folder = save(tmp_path / "run", 10, best_step=10)
        (folder / MANIFEST).write_text("{")


def test_ranks_are_as_asked_else_one_a_gpu_else_one(tmp_path):
    cluster = tiny_config(tmp_path).cluster
    assert count_ranks(cluster) == max(torch.cuda.device_count(), 1)
    cluster.ranks_per_node = 3
    assert count_ranks(cluster) == 3


def test_more_ranks_than_visible_gpus_are_refused_unless_they_are_for_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    cluster = tiny_config(tmp_path).cluster
    cluster.ranks_per_node = 3
    with pytest.raises(
        TopologyError, match=r"`cluster.ranks_per_node` must be at most the 2 GPU\(s\) .* is 3 "
    ):
        count_ranks(cluster)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert count_ranks(cluster) == 3


def test_inputs_are_made_when_missing_and_left_alone_when_there(tmp_path, capsys):
    save_llama(tmp_path / "model")
    for name, seed in (("chat", 1), ("text", 2)):
        write_documents(tmp_path / f"{name}.jsonl", 12, seed, ragged=name == "chat")
    config = tiny_config(tmp_path)
    ensure_inputs(config)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert files and "Prepared sources" in capsys.readouterr().out
    ensure_inputs(config)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert after == files and capsys.readouterr().out == ""
    tokenizer = configured_tokenizer(config.model, config.model.path)
    assert all(store.train.num_packs for store in open_all(config.data, tokenizer).values())


def test_a_divergence_on_replay_that_is_never_drawn_is_refused_before_ranks_start(tmp_path):
    config = tiny_config(tmp_path)
    save_llama(tmp_path / "model")
    for seed, name in enumerate(("chat", "text", "old")):
        write_documents(tmp_path / f"{name}.jsonl", 20, seed, ragged=name == "chat")
    config.data.sources["old"] = dataclasses.replace(
        config.data.sources["text"], path=str(tmp_path / "old.jsonl"), role=Role.replay
    )
    config.replay.kl.beta, config.replay.ratio = 0.5, 0.2
    tokenizer = ensure_inputs(config)
    check_draws(config, tokenizer)
    config.replay.ratio = 0.0
    with pytest.raises(DataError, match=r"`replay.kl.beta` must be 0 for a run that draws no replay"):
        check_draws(config, tokenizer)
    config.replay.kl.beta = 0.0
    check_draws(config, tokenizer)
