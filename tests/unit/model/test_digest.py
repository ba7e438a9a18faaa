"""The digest of weights: by content, cached by path, size and time."""

import json
import os
import shutil

import pytest

from tests.helpers.tiny import save_llama
from trainer.errors import ModelError
from trainer.model.digest import model_digest


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_llama(folder)
    return folder


@pytest.fixture
def model(original, tmp_path):
    return shutil.copytree(original, tmp_path / "copy")


def test_a_copy_has_the_same_digest_and_changed_weights_or_config_another(original, model):
    before = model_digest(str(original))
    assert len(before) == 64 and model_digest(str(model)) == before
    (model / "tokenizer_config.json").write_text("{}")
    assert model_digest(str(model)) == before, "the tokenizer has a digest of its own"
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rope_theta": 7.0}))
    changed = model_digest(str(model))
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (model / "model.safetensors").write_bytes(data)
    assert len({before, changed, model_digest(str(model))}) == 3


def test_shards_are_found_through_the_index(model):
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors", "b": "model-00001-of-00001.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert len(model_digest(str(model))) == 64


def test_files_are_read_once_until_they_change(model, tmp_path):
    cache = tmp_path / "cache"
    before = model_digest(str(model), None, cache)
    assert before == model_digest(str(model))
    notes = list((cache / "digests").iterdir())
    assert len(notes) == 2
    for note in notes:
        note.write_text("0" * 64)
    cached = model_digest(str(model), None, cache)
    assert cached != before, "the files were read again"
    os.utime(model / "model.safetensors", ns=(1, 1))
    assert model_digest(str(model), None, cache) not in (cached, before)
    os.utime(model / "config.json", ns=(1, 1))
    assert model_digest(str(model), None, cache) == before


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(model, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert model_digest(str(model), None, tmp_path / "file") == model_digest(str(model))


def test_a_folder_without_weights_is_named(model):
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"it holds no model\.safetensors"):
        model_digest(str(model))
    (model / "config.json").unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        model_digest(str(model))
