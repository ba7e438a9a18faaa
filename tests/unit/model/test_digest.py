"""The digest of weights: by content, with large files noted by what nobody can set, and sampled."""

import json
import os
import shutil

import pytest

from tests.helpers.tiny import save_llama
from trainer.errors import ModelError
from trainer.model.digest import BLOCK_BYTES, SMALL_BYTES, _read_whole, _still_there, model_digest
from trainer.runtime.seal import read_sealed, sealed_text


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


@pytest.fixture
def large(model):
    """Weights of 17 blocks, too large to be read whole every time; sparse."""
    with (model / "model.safetensors").open("rb+") as file:
        file.truncate(17 * BLOCK_BYTES)
    assert 17 * BLOCK_BYTES > SMALL_BYTES
    return model


def note_of(cache):
    (note,) = (cache / "digests").iterdir()
    return note


def flip(file, place):
    """Flip a bit and give the file its size and modification time back."""
    before = file.stat()
    with file.open("rb+") as stream:
        stream.seek(place)
        byte = stream.read(1)[0]
        stream.seek(place)
        stream.write(bytes([byte ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_small_files_are_read_every_time_and_large_ones_once(large, tmp_path):
    cache = tmp_path / "cache"
    before = model_digest(str(large), None, cache)
    assert before == model_digest(str(large))
    known = read_sealed(note_of(cache))
    assert len(known["blocks"]) == 17
    note_of(cache).write_text(sealed_text(known | {"sha256": "0" * 64}))
    assert model_digest(str(large), None, cache) != before, "the file was read whole again"


@pytest.mark.parametrize("place", [0, 3 * BLOCK_BYTES + 5, 17 * BLOCK_BYTES - 1])
def test_weights_that_keep_size_and_modification_time_have_another_digest(place, large, tmp_path):
    """The time of the change cannot be set, so that what is noted is not found."""
    cache = tmp_path / "cache"
    before = model_digest(str(large), None, cache)
    flip(large / "model.safetensors", place)
    after = model_digest(str(large), None, cache)
    assert after != before and after == model_digest(str(large))


def test_bits_that_rot_below_the_file_system_are_found_when_their_block_is_sampled(large, tmp_path, caplog):
    """Rot leaves no time behind: here the note is moved to the name that the changed file has."""
    cache, file = tmp_path / "cache", large / "model.safetensors"
    before = model_digest(str(large), None, cache)
    known = note_of(cache)
    flip(file, 5)
    changed = model_digest(str(large), None, cache)
    (new,) = [note for note in (cache / "digests").iterdir() if note != known]
    new.write_bytes(known.read_bytes())
    assert model_digest(str(large), None, cache) == changed != before
    assert "has other bytes than at its last reading" in caplog.text


def test_one_rotten_block_of_many_is_found_within_some_starts(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(bytes(40 * BLOCK_BYTES))
    _, blocks = _read_whole(file, lambda: None)
    assert _still_there(file, blocks)
    blocks[23] = "0" * 32
    # Missed by 8 of 40 in 60 starts: once in 600,000 runs of this test.
    assert not all(_still_there(file, blocks) for _ in range(60))


def test_a_damaged_note_is_not_believed(large, tmp_path, caplog):
    cache = tmp_path / "cache"
    before = model_digest(str(large), None, cache)
    text = note_of(cache).read_text()
    note_of(cache).write_text(text.replace(before[:4], "0000") if before[:4] in text else text[:-9])
    assert model_digest(str(large), None, cache) == before
    assert "cannot be used" in caplog.text


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(large, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert model_digest(str(large), None, tmp_path / "file") == model_digest(str(large))


def test_a_folder_without_weights_is_named(model):
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"it holds no model\.safetensors"):
        model_digest(str(model))
    (model / "config.json").unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        model_digest(str(model))


def test_a_look_between_blocks_may_end_the_reading_and_nothing_is_noted(large, tmp_path):
    """A signal during the minutes that 140 GB take."""
    seen = []

    def look():
        seen.append(1)
        if len(seen) == 3:
            raise InterruptedByTest

    with pytest.raises(InterruptedByTest):
        model_digest(str(large), None, tmp_path / "cache", look)
    assert len(seen) == 3 and not (tmp_path / "cache").exists()


class InterruptedByTest(Exception):
    """What a look raises."""
