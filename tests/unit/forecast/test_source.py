"""Where a config.json is found, and what is said where there is none."""

import json
import os

import pytest

from trainer.errors import ModelError
from trainer.forecast.card import Cards, find_cards
from trainer.forecast.config_json import read_config_json

CONFIG = {"model_type": "llama", "hidden_size": 8}


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """Return an empty Hugging Face cache without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put_in_cache(cache, name, config, revision="main"):
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / revision).write_text("abc")
    (folder / "snapshots" / "abc" / "config.json").write_text(json.dumps(config))


def test_a_folder_and_a_file_are_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    for path in (tmp_path, tmp_path / "config.json"):
        assert read_config_json(str(path)) == (CONFIG, str(tmp_path / "config.json"))


def test_the_cache_wins_over_the_shape_that_ships(cache):
    name = "meta-llama/Llama-3.1-8B"
    assert read_config_json(name)[0]["num_hidden_layers"] == 32
    put_in_cache(cache, name, CONFIG)
    assert read_config_json(name)[0] == CONFIG


def test_a_cached_model_of_another_name_is_read(cache):
    put_in_cache(cache, "somebody/model", CONFIG, revision="v2")
    assert read_config_json("somebody/model", "v2")[0] == CONFIG
    with pytest.raises(ModelError, match="not in the cache"):
        read_config_json("somebody/model", "v3")


def test_a_revision_is_never_answered_with_the_shape_that_ships(cache):
    with pytest.raises(ModelError, match="not in the cache and the hub cannot be reached"):
        read_config_json("meta-llama/Llama-3.1-8B", "v1")


def test_an_unknown_name_is_refused_offline(cache):
    with pytest.raises(ModelError, match=r"'nobody/nothing' is neither: there is no such folder, and"):
        read_config_json("nobody/nothing")


def test_a_name_that_no_hub_has_is_refused(cache):
    with pytest.raises(ModelError, match=r"'a/b/c' is neither"):
        read_config_json("a/b/c")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "cannot be read"),
        ("[1]", "must be the configuration of a model"),
        ('{"hidden_size": 8}', "name its `model_type`"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, text, reason):
    (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ModelError, match=reason):
        read_config_json(str(tmp_path))


def test_a_folder_without_config_json_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(ModelError, match="must be a model name or a folder with"):
            read_config_json(str(path))


def fake_smi(folder, script):
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("visible", "count"), [(None, 2), ("1", 1), ("", 0), ("-1", 0), ("0,1,2,3", 2)], ids=str
)
def test_cards_are_those_nvidia_smi_names(tmp_path, monkeypatch, visible, count):
    says = "*compute_cap) printf '9.0\\n8.6\\n';; *=name) printf 'NVIDIA H200\\nNVIDIA A40\\n';;"
    fake_smi(tmp_path, f"case $1 in {says} *) printf '143771\\n81559\\n';; esac")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert find_cards() == Cards(count, 81559 / 1024, (8, 6), "NVIDIA H200")


def test_a_driver_that_does_not_know_capabilities_still_tells_of_memory(tmp_path, monkeypatch):
    fake_smi(
        tmp_path,
        "case $1 in *compute_cap) echo 'Field is not valid'; exit 2;; *=name) echo L4;; *) echo 81559;; esac",
    )
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert find_cards() == Cards(1, 81559 / 1024, None, "L4")


def test_without_a_working_nvidia_smi_there_are_no_cards(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_cards() == Cards(0, None)
    fake_smi(tmp_path, "exit 9")
    assert find_cards() == Cards(0, None)
