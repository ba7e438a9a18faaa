"""The frozen configuration of a run directory: what may differ, what is refused, what is written."""

import copy
import dataclasses
import json
import os

import pytest

from tests.helpers.tiny import tiny_config
from trainer.config.data import PackingMode
from trainer.config.describe import known_keys
from trainer.config.gate import GateRule
from trainer.config.learn import ToolCalls
from trainer.config.may_differ import MAY_DIFFER
from trainer.config.model import Attention
from trainer.config.optim import Offload, ReduceDtype
from trainer.config.record import WORDS
from trainer.config.snapshot import (
    config_digest,
    dated,
    differences,
    freeze,
    packed_as_begun,
    with_packing_mode,
    write_atomic,
    write_provenance,
)
from trainer.config.store import load_config
from trainer.errors import ConfigError


@pytest.fixture
def config(tmp_path):
    return tiny_config(tmp_path)


def changed(config, key, value):
    """Return a copy with one value changed."""
    result = copy.deepcopy(config)
    *sections, name = key.split(".")
    target = result
    for section in sections:
        target = target[section] if isinstance(target, dict) else getattr(target, section)
    assert getattr(target, name) != value, f"{key} is {value} already"
    setattr(target, name, value)
    return result


def test_a_run_from_before_documents_could_be_rows_goes_on_packed(config, tmp_path):
    """Its frozen configuration does not say; what is resumed from it was packed, whatever the model."""
    run_dir = tmp_path / "run"
    freeze(config, run_dir)
    begun(run_dir)
    assert config.data.packing is PackingMode.auto
    assert packed_as_begun(config, run_dir).data.packing is PackingMode.packed
    assert load_config(freeze(config, run_dir)).data.packing is PackingMode.packed
    freeze(with_packing_mode(config, PackingMode.packed), run_dir)
    with pytest.raises(ConfigError, match=r"data\.packing: packed -> none"):
        freeze(with_packing_mode(config, PackingMode.none), run_dir)


MAY = [
    ("log.every_steps", 7),
    ("cluster.ranks_per_node", 4),
    ("export.dtype", "float32"),
    ("checkpoint.every_steps", 7),
    ("evaluate.every_steps", 7),
    ("gate.sets", {"general": GateRule(max_rise_nats=0.1)}),
    ("plan.gpu_gib", 80.0),
    ("synthetic.seed", 5),
    ("sweep.trials", 5),
    ("run_dir", "/elsewhere"),
    ("name", "other"),
    ("data.cache_dir", "/elsewhere"),
    ("data.num_workers", 3),
    ("model.verify_weights", False),
    ("train.isolation_probe", False),
    ("replay.generate.num_tokens", 5),
    ("train.micro_batch_size", 2),
    ("train.sequence_parallel", 2),
    ("objective.distill.shard_teacher", True),
    ("model.checkpoint_layers", 1),
    ("zero.stage", 3),
    ("zero.overlap_comm", False),
    ("zero.reduce_bucket_size", 7),
    ("zero.prefetch_bucket_size", 7),
    ("zero.max_live_parameters", 7),
    ("zero.max_reuse_distance", 7),
    ("zero.persistence_threshold", 7),
    ("zero.sub_group_size", 7),
    ("zero.offload_optimizer", Offload.cpu),
]
MUST_NOT = [
    ("seed", 7),
    ("model.path", "other"),
    ("model.attention", Attention.sdpa),
    ("data.seq_len", 128),
    ("data.shuffle", False),
    ("data.sources.chat.path", "other.jsonl"),
    ("data.sources.chat.clean.min_chars", 2),
    ("train.max_steps", 9),
    ("optim.betas", [0.9, 0.99]),
    ("schedule.warmup_steps", None),
    ("zero.reduce_dtype", ReduceDtype.fp32),
    ("zero.extra", {"wall_clock_breakdown": True}),
]


def test_the_cases_cover_every_key_that_may_differ():
    used = {next(prefix for prefix in MAY_DIFFER if key.startswith(prefix)) for key, _ in MAY}
    assert used == set(MAY_DIFFER)
    assert all(any(key.startswith(prefix) for key in known_keys()) for prefix in MAY_DIFFER)


@pytest.mark.parametrize(("key", "value"), MAY)
def test_a_key_that_shapes_nothing_may_differ(config, key, value):
    other = changed(config, key, value)
    assert differences(config, other) == [] and config_digest(config) == config_digest(other)


@pytest.mark.parametrize(("key", "value"), MUST_NOT)
def test_a_key_that_shapes_the_training_is_named_with_both_values(config, key, value):
    other = changed(config, key, value)
    (found,) = differences(config, other)
    assert found.startswith(key) and " -> " in found
    assert config_digest(config) != config_digest(other)


def test_a_source_more_or_less_is_a_difference(config):
    other = copy.deepcopy(config)
    del other.data.sources["text"]
    assert differences(config, other) == ["data.sources.text: removed"]
    assert differences(other, config) == ["data.sources.text: added"]
    assert config_digest(config) != config_digest(other)


def begun(run_dir):
    """Freeze nothing, but leave what the first step of a run leaves."""
    (run_dir / "metrics.jsonl").touch()


def test_a_directory_in_which_nothing_was_trained_takes_another_configuration(config, tmp_path):
    freeze(config, tmp_path / "run")
    other = changed(config, "seed", 7)
    assert load_config(freeze(other, tmp_path / "run")) == dated(other, tmp_path / "run")


def test_a_run_directory_takes_the_same_configuration_again(config, tmp_path):
    run_dir = tmp_path / "run"
    path = freeze(config, run_dir)
    again = changed(config, "log.every_steps", 5)
    assert freeze(again, run_dir) == path
    assert load_config(path) == dated(again, run_dir), "what may differ is the newest"
    assert [entry.name for entry in run_dir.iterdir()] == ["config.yaml"]


def test_what_was_fitted_stays_frozen_when_the_run_goes_on_from_null(config, tmp_path):
    """A sweep that goes on freezes each point anew, before its ranks are started and fit it."""
    null = dataclasses.replace(
        config,
        zero=dataclasses.replace(config.zero, stage=None, dtype="auto"),
        model=dataclasses.replace(config.model, checkpoint_layers=None),
    )
    begun = dataclasses.replace(
        config,
        zero=dataclasses.replace(config.zero, stage=2, dtype="bf16"),
        model=dataclasses.replace(config.model, checkpoint_layers=3),
    )
    path = freeze(begun, tmp_path)
    assert load_config(freeze(null, tmp_path)).zero.stage is None, "nothing was trained yet"
    freeze(begun, tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    freeze(null, tmp_path)
    assert (load_config(path).zero.stage, load_config(path).zero.dtype) == (2, "bf16")
    assert load_config(path).model.checkpoint_layers == 3
    freeze(begun, tmp_path)


def test_a_run_directory_refuses_another_configuration_and_keeps_its_own(config, tmp_path):
    run_dir = tmp_path / "run"
    before = freeze(config, run_dir).read_bytes()
    begun(run_dir)
    other = changed(changed(config, "seed", 7), "optim.lr", 0.5)
    with pytest.raises(ConfigError) as caught:
        freeze(other, run_dir)
    assert str(caught.value) == (
        f"{run_dir} holds a run of another configuration (optim.lr: 0.002 -> 0.5; seed: 0 -> 7). Give "
        f"the new run a directory of its own, such as run_dir={run_dir}-2, or give the same values to go on with the "
        "one that is there."
    )
    with pytest.raises(
        ConfigError, match=r"one that is there\. To train on what it has trained, give the new run its"
    ):
        freeze(changed(config, "train.max_steps", 99), run_dir)
    assert (run_dir / "config.yaml").read_bytes() == before
    assert sorted(entry.name for entry in run_dir.iterdir()) == ["config.yaml", "metrics.jsonl"]


def test_an_unnamed_run_is_told_a_name_that_is_free(config, tmp_path, monkeypatch):
    """All runs without a name are runs/run."""
    monkeypatch.chdir(tmp_path)
    config = changed(changed(config, "name", "run"), "run_dir", str(tmp_path / "runs/run"))
    freeze(config, tmp_path / "runs/run")
    begun(tmp_path / "runs/run")
    (tmp_path / "runs/run-2").mkdir()
    for words, advised in (
        ("train model=tiny", "name=run-3"),
        ("train run_dir=runs/run", f"run_dir={tmp_path}/runs/run-3"),
    ):
        monkeypatch.setenv(WORDS, words)
        with pytest.raises(ConfigError, match=rf"such as {advised}, or give the same values"):
            freeze(changed(config, "seed", 7), tmp_path / "runs/run")


def test_many_differences_are_cut_short(config, tmp_path):
    freeze(config, tmp_path / "run")
    begun(tmp_path / "run")
    other = copy.deepcopy(config)
    for key in MUST_NOT[:8]:
        other = changed(other, *key)
    with pytest.raises(ConfigError) as caught:
        freeze(other, tmp_path / "run")
    assert str(caught.value).count(" -> ") == 6 and "; and 2 more)" in str(caught.value)


def test_what_was_typed_is_named_before_the_rest(config, tmp_path, monkeypatch):
    """A failure: a source that went was five fields, and the rate and the length were behind dots."""
    freeze(config, tmp_path / "run")
    begun(tmp_path / "run")
    other = copy.deepcopy(config)
    del other.data.sources["text"]
    for key in [*MUST_NOT[:8], ("optim.lr", 0.5)]:
        other = changed(other, *key)
    monkeypatch.setenv(WORDS, "train recipe=lora optim.lr=0.5 +train.max_steps=9")
    lr, steps = config.optim.lr, config.train.max_steps
    told = rf"\(optim\.lr: {lr} -> 0\.5; train\.max_steps: {steps} -> 9; data\.sources\.text: removed; "
    with pytest.raises(ConfigError, match=told + r".*; and 4 more\)"):
        freeze(other, tmp_path / "run")


def test_a_damaged_frozen_configuration_is_named(config, tmp_path):
    path = freeze(config, tmp_path / "run")
    begun(tmp_path / "run")
    path.write_text("optim: {lr: [1\n")
    with pytest.raises(ConfigError, match=r"config\.yaml is not valid YAML"):
        freeze(config, tmp_path / "run")


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    write_atomic(path, "before")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "half of it, then \ud800")
    assert path.read_text() == "before" and [*tmp_path.iterdir()] == [path]
    write_atomic(path, "after")
    assert path.read_text() == "after" and [*tmp_path.iterdir()] == [path]


def test_a_rename_that_fails_leaves_no_temporary_file(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        write_atomic(tmp_path / "taken", "text")
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]


def test_the_provenance_names_versions_and_facts_and_no_secret(tmp_path, monkeypatch):
    secrets = {
        "HF_TOKEN": "hf_abcdefghijklmnopqrstuvwxyz012345",
        "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLE",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    write_provenance(tmp_path, data={"chat": "abc"}, model="folder", device="cpu")
    text = (tmp_path / "provenance.json").read_text()
    record = json.loads(text)
    assert (record["data"], record["model"], record["device"]) == ({"chat": "abc"}, "folder", "cpu")
    assert record["packages"]["torch"] and record["packages"]["deepspeed"]
    assert set(record) == {
        "python",
        "packages",
        "palimpsest",
        "git",
        "host",
        "words",
        "data",
        "model",
        "device",
    }
    for word in (*secrets, *secrets.values(), os.environ.get("HOME", "/nowhere") + "/"):
        assert word not in text
    assert [entry.name for entry in tmp_path.iterdir()] == ["provenance.json"]


def test_an_image_says_which_commit_it_holds(tmp_path, monkeypatch):
    monkeypatch.setenv("PALIMPSEST_REVISION", "0123abc")
    write_provenance(tmp_path)
    assert json.loads((tmp_path / "provenance.json").read_text())["git"] == "0123abc"


def test_code_outside_a_checkout_has_no_sha_and_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    write_provenance(tmp_path)
    assert json.loads((tmp_path / "provenance.json").read_text())["git"] is None


def test_a_configuration_is_not_changed_by_comparing(config):
    before = dataclasses.asdict(config)
    differences(config, changed(config, "seed", 3))
    config_digest(config)
    assert dataclasses.asdict(config) == before


def test_the_day_that_templates_are_told_is_that_on_which_the_run_began(config, tmp_path):
    """A failure: a run that goes on tomorrow trains on other tokens."""
    run_dir = tmp_path / "run"
    first = dataclasses.replace(
        config, model=dataclasses.replace(config.model, chat_template_date="2020-02-29")
    )
    freeze(first, run_dir)
    begun(run_dir)
    assert dated(config, run_dir).model.chat_template_date == "2020-02-29"
    assert load_config(freeze(config, run_dir)).model.chat_template_date == "2020-02-29"
    other = dataclasses.replace(
        config, model=dataclasses.replace(config.model, chat_template_date="2020-03-01")
    )
    with pytest.raises(ConfigError, match=r"model\.chat_template_date: 2020-02-29 -> 2020-03-01"):
        freeze(other, run_dir)


def test_a_frozen_configuration_with_a_flipped_bit_is_not_taken(config, tmp_path):
    """In most places the bit makes another number, name or path, which YAML takes as gladly."""
    path = freeze(config, tmp_path / "run")
    text = path.read_bytes()
    for at in range(0, len(text), max(len(text) // 60, 1)):
        path.write_bytes(text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :])
        try:
            assert load_config(path) == dated(config, tmp_path / "run"), "the mark of the digest itself"
        except ConfigError as error:
            assert str(path) in str(error)
    path.write_bytes(text)
    assert load_config(path) == dated(config, tmp_path / "run")


def test_what_lets_a_source_pass_shapes_no_training(config):
    """Runs of before there were such keys go on, and a bound may be lowered in between."""
    name = next(iter(config.data.sources))
    before = config_digest(config)
    for key, value in (("synthetic", True), ("min_acceptance", None)):
        other = changed(config, f"data.sources.{name}.{key}", value)
        assert config_digest(other) == before and not differences(config, other)
    dropping = changed(config, f"data.sources.{name}.learn.tool_calls", ToolCalls.drop)
    assert config_digest(dropping) != before and differences(config, dropping)
