"""What a command does before ranks start: inputs are made, and what no rank could do is refused."""

import dataclasses
import json
import shutil
from collections import namedtuple

import pytest

from tests.helpers.tiny import save_llama, tiny_config, write_documents
from trainer.command.before_ranks import check_disk, check_draws
from trainer.command.prepare import ensure_inputs
from trainer.config.data import LongDocuments, Role
from trainer.config.replay import RatioController, ReplayChoice
from trainer.data.store.prepared import open_all
from trainer.errors import CheckpointError, ConfigError, DataError
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
    num_steps = check_draws(config, tokenizer)
    config.replay.ratio, config.replay.choice = 0.2, ReplayChoice.losing
    config.replay.choice_every = num_steps - 2
    check_draws(config, tokenizer)
    config.replay.choice_every = num_steps - 1
    with pytest.raises(
        ConfigError, match=r"`replay.choice_every` must leave room for a choice in the \d+ steps of"
    ):
        check_draws(config, tokenizer)


def held(tmp_path, **replay):
    """A run of a source of text and one of replay whose ratio answers to what is forgotten."""
    config = tiny_config(tmp_path)
    save_llama(tmp_path / "model")
    for seed, name in enumerate(("chat", "text", "old")):
        write_documents(tmp_path / f"{name}.jsonl", 20, seed, ragged=name == "chat")
    config.data.sources["old"] = dataclasses.replace(
        config.data.sources["text"], path=str(tmp_path / "old.jsonl"), role=Role.replay
    )
    config.evaluate.every_steps = 2
    config.replay.controller, config.replay.ratio = RatioController.hold, 0.2
    for key, value in replay.items():
        setattr(config.replay, key, value)
    return config


def test_a_ratio_that_answers_to_the_kl_needs_conversations_that_the_model_knows_and_that_fit(tmp_path):
    config = held(tmp_path, epsilon_kl=0.1)
    config.data.seq_len, config.train.global_batch_tokens = 48, 4 * 48
    for source in config.data.sources.values():
        source.long_documents = LongDocuments.drop
    short = r"must be null without conversations that fit data.seq_len=48, but is 0.1 instead. Raise data.seq_len."
    with pytest.raises(ConfigError, match=short):
        check_draws(config, ensure_inputs(config))
    config.data.seq_len = 192
    config.train.global_batch_tokens = 4 * 192
    check_draws(config, ensure_inputs(config))
    tokenizer_config = tmp_path / "model" / "tokenizer_config.json"
    config.model.chat_template = str(tmp_path / "odd.jinja")
    (tmp_path / "odd.jinja").write_text("{{ raise_exception('no chats today') }}")
    odd = r"\(of the first: one that it refuses: no chats today\), but is 0.1 .* model.chat_template"
    with pytest.raises(ConfigError, match=odd):
        check_draws(config, ensure_inputs(config))
    config.model.chat_template = None
    for file in (tmp_path / "model").glob("*.jinja"):
        file.unlink()
    plain = {k: v for k, v in json.loads(tokenizer_config.read_text()).items() if k != "chat_template"}
    tokenizer_config.write_text(json.dumps(plain))
    bare = "without a chat template, which .* has not, but is 0.1 .* Leave it out, or set model.chat_template"
    with pytest.raises(ConfigError, match=bare):
        check_draws(config, ensure_inputs(config))


def test_a_ratio_that_answers_to_a_source_of_which_nothing_is_held_out_is_refused(tmp_path):
    """It would see no rise, ever, and fall to the lowest ratio."""
    config = held(tmp_path)
    check_draws(config, ensure_inputs(config))
    (only, *_) = (tmp_path / "old.jsonl").read_text().splitlines()
    (tmp_path / "old.jsonl").write_text(only + "\n")
    config.train.max_steps = 1
    with pytest.raises(
        ConfigError, match=r"`replay.watch` must be of sources with held-out text, but old has none"
    ):
        check_draws(config, ensure_inputs(config))
    config.replay.watch = ["text"]
    check_draws(config, ensure_inputs(config))


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
