"""What a command does before ranks start: inputs are made, and what no rank could do is refused."""

import dataclasses
import shutil
from collections import namedtuple

import pytest

from tests.helpers.tiny import save_llama, tiny_config, write_documents
from trainer.command.before_ranks import check_disk, check_draws
from trainer.command.prepare import ensure_inputs
from trainer.config.data import Role
from trainer.data.store.prepared import open_all
from trainer.errors import CheckpointError, DataError
from trainer.model.tokenizer import configured_tokenizer


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


def test_a_disk_without_room_is_told_before_a_model_is_loaded_by_the_shapes_alone(tmp_path, monkeypatch):
    """It was asked when the weights were on their GPU; here is no more of the model than its config.json."""
    config = tiny_config(tmp_path)
    save_llama(tmp_path / "model")
    for file in (tmp_path / "model").iterdir():
        if file.name != "config.json":
            file.unlink()
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1_000))
    config.checkpoint.every_steps = 0
    with pytest.raises(
        CheckpointError, match=r"room for 1 checkpoint at once \(.*: all that can be written up to step 8"
    ):
        check_disk(config, 1, 8)
    assert not (tmp_path / "run" / "checkpoints").exists()
    config.checkpoint.enabled = False
    check_disk(config, 1, 8)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9))
    config.checkpoint.enabled = True
    check_disk(config, 1, 8)
