"""Loaded parameters are compared with their files by value."""

import contextlib
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.tiny import save_llama
from trainer.config.model import ModelConfig
from trainer.errors import SelfCheckError
from trainer.model.base_files import open_base
from trainer.model.verify_weights import NUM_MATRICES, verify_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    save_llama(path)
    return path


def load(folder, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def verify(model, source):
    asked = []

    def gather(parameters):
        asked.extend(parameters)
        return contextlib.nullcontext()

    return verify_weights(model, open_base(str(source), ModelConfig(path=str(source))), gather), asked


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weights_of_the_files_pass_in_the_dtype_they_were_loaded_in(folder, dtype):
    count, asked = verify(load(folder, dtype), folder)
    assert count == len(asked) == NUM_MATRICES
    first = load(folder, dtype)
    names = [name for name, _ in first.named_parameters()]
    assert torch.equal(asked[0], first.get_parameter(names[0])), "the first is compared"
    assert torch.equal(asked[-1], first.get_parameter(names[-1])), "the last is compared"


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight"])
def test_one_changed_value_is_found_and_named(folder, name):
    model = load(folder)
    with torch.no_grad():
        model.get_parameter(name)[-1, -1] += 1e-3
    with pytest.raises(SelfCheckError) as caught:
        verify(model, folder)
    assert f"The loaded parameter {name} must equal {name} in model.safetensors" in str(caught.value)


def test_weights_of_another_model_are_found(folder, tmp_path):
    save_llama(tmp_path, seed=1)
    with pytest.raises(SelfCheckError, match="would not train from the weights you named"):
        verify(load(tmp_path), folder)


def test_names_without_the_prefix_of_the_base_model_are_found(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    tensors = load_file(folder / "model.safetensors")
    save_file({k.removeprefix("model."): v for k, v in tensors.items()}, tmp_path / "model.safetensors")
    assert verify(load(folder), tmp_path)[0] == NUM_MATRICES


def test_nothing_is_compared_with_files_that_are_not_there(folder, tmp_path):
    shutil.copy(folder / "config.json", tmp_path)
    assert verify(load(folder), tmp_path) == (0, [])
