"""The tiny model: made once, the same everywhere, published whole or not at all."""

import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.small_disk import fill, mounted, pages_free
from tests.helpers.tiny import SHAPE
from trainer.config.model import ModelConfig
from trainer.errors import ModelError
from trainer.model.tensor_files import weight_files
from trainer.model.tiny import SPECIALS, build_tokenizer, tiny_model_dir
from trainer.model.tokenizer import configured_tokenizer


def weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def test_it_is_made_once_and_leaves_the_generators_alone(tmp_path):
    before = torch.get_rng_state()
    folder = tiny_model_dir(tmp_path, SHAPE, 0)
    made = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert tiny_model_dir(tmp_path, SHAPE, 0) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == made
    assert torch.equal(before, torch.get_rng_state())
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]


def test_the_same_seed_gives_the_same_weights_and_another_seed_or_shape_another_folder(tmp_path):
    first = weights(tiny_model_dir(tmp_path / "a", SHAPE, 0))
    again = weights(tiny_model_dir(tmp_path / "b", SHAPE, 0))
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = weights(tiny_model_dir(tmp_path / "a", SHAPE, 1))
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    deeper = tiny_model_dir(tmp_path / "a", SHAPE | {"num_hidden_layers": 3}, 0)
    assert len(weight_files(str(deeper))) > len(first)
    assert len([*(tmp_path / "a" / "models").iterdir()]) == 3


def test_its_tokenizer_reads_any_bytes_back_and_fits_its_vocabulary(tmp_path):
    folder = tiny_model_dir(tmp_path, ModelConfig().tiny, 0)
    tokenizer = configured_tokenizer(ModelConfig(), str(folder))
    text = "Grüße, 世界!\n\t  end "
    (ids,) = tokenizer.encode_documents([text])
    assert tokenizer.decode(ids) == text and len(ids) == len(text.encode())
    assert tokenizer.vocab_size == 256 + len(SPECIALS) <= weights(folder)["lm_head.weight"].shape[0]
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.bos_id) == (1, 0, None)
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert (
        tokenizer.render_chat(said) == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
    )
    assert tokenizer.render_chat(said[:1], add_generation_prompt=True).endswith("<|im_start|>assistant\n")
    assert tokenizer.digest == type(tokenizer)(build_tokenizer()).digest


def test_a_cache_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "models").write_text("a file, not a folder")
    with pytest.raises(ModelError, match=r"cannot be written to .* Set data\.cache_dir\."):
        tiny_model_dir(tmp_path, SHAPE, 0)


def test_a_shape_that_fails_leaves_nothing_behind(tmp_path):
    with pytest.raises(Exception, match="63"):
        tiny_model_dir(tmp_path, SHAPE | {"hidden_size": 63}, 0)
    assert [*(tmp_path / "models").iterdir()] == []


def test_a_full_disk_is_a_sentence_at_any_point_and_room_is_enough_afterwards(tmp_path):
    """Pages are left for none, some or nearly all of its files."""
    with mounted(tmp_path / "disk", "size=8m") as disk:
        before = pages_free(disk)
        tiny_model_dir(disk, SHAPE, 0)
        needed = before - pages_free(disk)
        for left in (0, 2, needed // 4, needed // 2, needed - 2):
            shutil.rmtree(disk / "models")
            filler = fill(disk, left)
            with pytest.raises(
                ModelError, match=rf"cannot be written to {disk}/models/tiny-\w+: No space left"
            ):
                tiny_model_dir(disk, SHAPE, 0)
            assert not [*(disk / "models").glob("*")] if (disk / "models").exists() else True
            filler.unlink()
            assert tiny_model_dir(disk, SHAPE, 0).is_dir()
