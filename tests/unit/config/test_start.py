"""What an adapter's folder says of it, without torch, and which options it takes the place of."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest

from trainer.config.check import find_problems
from trainer.config.start import start_options, start_place, with_start
from trainer.config.store import compose_config
from trainer.errors import ConfigError

COMMON = ["model=tiny", "data=text", "data.sources.corpus.path=x.txt", "train.max_steps=1", "tune=lora"]
PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "target_modules": ["q_proj"]}
NAMES = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")


def folder_of(folder: Path, names: tuple[str, ...] = NAMES, **described: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(PLAIN | described))
    header = json.dumps({f"base_model.model.{name}.lora_A.weight": {} for name in names}).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    return folder


def composed(folder: Path, *words: str) -> Any:
    lines: list[str] = []
    return compose_config([*COMMON, f"tune.start={folder}", *words], say=lines.append)


def test_options_left_open_are_the_adapters_own(tmp_path):
    tune = composed(folder_of(tmp_path, use_rslora=True, use_dora=True)).tune
    assert (tune.r, tune.alpha, tune.rslora, tune.dora) == (4, 6.0, True, True)
    assert tune.target == ["down_proj", "q_proj"], "the layers of its tensors, whatever its description names"


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["tune.r=16"], "tune.r"),  # also where it is the default
        (["tune.alpha=5"], "tune.alpha"),
        (["tune=dora"], "tune.dora"),
        (["tune.rslora=true"], "tune.rslora"),
        (["tune.target=[q_proj]"], "tune.target"),
        (["tune.target_pattern=.*q_proj"], "tune.target_pattern"),
        (["tune=pissa"], "tune.init"),
        (["tune.modules_to_save=[lm_head]"], "tune.modules_to_save"),
        (["model.new_tokens=[a]"], "model.new_tokens"),
        (["tune=full"], "tune.start"),
        (["tune=ia3"], "tune.start"),
    ],
)
def test_what_contradicts_it_is_refused_by_name(tmp_path, words, key):
    config = composed(folder_of(tmp_path), *words)
    assert key in {found.key for found in find_problems(config, 1)}


def test_the_same_values_may_be_said_again(tmp_path):
    config = composed(folder_of(tmp_path), "tune.r=4", "tune.alpha=6", "tune.target=[q_proj,down_proj]")
    assert not [*find_problems(config, 1)]


@pytest.mark.parametrize(
    ("described", "says"),
    [
        ({"peft_type": "IA3"}, "must be a LoRA adapter, but"),
        ({"rank_pattern": {"q_proj": 2}}, "ranks that differ by layer"),
        ({"alpha_pattern": {"q_proj": 2}}, "alphas that differ by layer"),
        ({"modules_to_save": ["lm_head"]}, "modules that trained whole"),
        ({"trainable_token_indices": {"embed_tokens": [3]}}, "rows of embeddings"),
        ({"bias": "all"}, "biases that trained"),
        ({"init_lora_weights": "pissa"}, "was begun by pissa, which moves the base"),
        ({"init_lora_weights": "olora"}, "was begun by olora"),
        ({"r": "many"}, "no usable"),
    ],
)
def test_more_than_factors_beside_layers_is_refused(tmp_path, described, says):
    with pytest.raises(ConfigError, match=says) as raised:
        start_options(folder_of(tmp_path, **described))
    assert str(raised.value).startswith("`tune.start` must be ") and str(tmp_path) in str(raised.value)


def test_what_is_no_adapter_is_told_for_what_it_is(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    (tmp_path / "file").write_text("")
    bare = folder_of(tmp_path / "bare")
    (bare / "adapter_model.safetensors").unlink()
    torn = folder_of(tmp_path / "torn")
    (torn / "adapter_model.safetensors").write_bytes(b"\xff" * 20)
    says = {
        "gone": "is not there",
        "empty": "has no adapter_config.json",
        "model": "Set model.path to it: it is a whole model",
        "run": "a run that trained an adapter, but",
        "file": "is a file",
        "bare": "with adapter_model.safetensors, but",
        "torn": "cannot be read",
    }
    for name, sentence in says.items():
        with pytest.raises(ConfigError) as raised:
            start_options(tmp_path / name)
        assert sentence in str(raised.value), name


def test_a_run_that_began_by_pissa_is_plain_lora_of_twice_the_rank(tmp_path):
    """W + s (B A - B0 A0): rank 2 r with the scale that r had, of rsLoRA too."""
    folder = folder_of(tmp_path, init_lora_weights="pissa", target_modules=list(NAMES))
    (folder / "config.yaml").write_text("")
    found = start_options(folder)
    assert (found.r, found.alpha / found.r) == (8, 6 / 4)
    folder_of(tmp_path, init_lora_weights="pissa", use_rslora=True, target_modules=list(NAMES))
    found = start_options(folder)
    assert (found.r, found.rslora) == (8, False) and found.alpha / found.r == pytest.approx(6 / math.sqrt(4))


def test_a_run_reads_its_own_copy_once_it_has_saved(tmp_path):
    """The other run may have trained on, or be gone."""
    given, run_dir = folder_of(tmp_path / "sft"), tmp_path / "run"
    config = composed(given, f"run_dir={run_dir}")
    folder_of(run_dir / "start_adapter", r=7)
    assert start_place(config, True) == given
    (run_dir / "checkpoints" / "step-00000002").mkdir(parents=True)
    assert start_place(config, True) == run_dir / "start_adapter"
    assert start_place(config, False) == given
    assert composed(given, f"run_dir={run_dir}").tune.r == 7
    (given / "adapter_config.json").unlink()
    (given / "adapter_model.safetensors").unlink()
    given.rmdir()
    assert start_place(config, False) == run_dir / "start_adapter"


def test_a_frozen_configuration_holds_what_was_taken(tmp_path):
    config = composed(folder_of(tmp_path))
    assert with_start(config, ()).tune == config.tune
