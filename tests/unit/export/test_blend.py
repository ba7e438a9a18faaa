"""Weights between base and tuned."""

import pytest
import torch
from safetensors.torch import save_file

from trainer.errors import ModelError
from trainer.export.blend import blended
from trainer.model.base_files import BaseFiles
from trainer.model.tensor_files import weight_files

BASE = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
TUNED = {"a": BASE["a"] + 2, "b": torch.full((4,), 3.0)}


@pytest.fixture
def base(tmp_path):
    save_file(BASE, tmp_path / "model.safetensors")
    return BaseFiles(str(tmp_path), weight_files(str(tmp_path)))


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_tensors_are_on_the_line_between_both_in_the_tuned_dtype(base, alpha):
    found = dict(blended(TUNED.items(), base, alpha))
    assert torch.allclose(found["a"], BASE["a"] + 2 * alpha)
    assert torch.allclose(found["b"], torch.full((4,), 1 + 2 * alpha))
    assert found["b"].dtype is torch.float32


def test_another_vocabulary_is_refused(base):
    with pytest.raises(
        ModelError, match=r"but a is \[2, 3\] there and \[5, 3\] here: another size or vocabulary"
    ):
        list(blended({"a": torch.zeros(5, 3)}.items(), base, 0.5))


def test_another_architecture_is_refused(base):
    with pytest.raises(ModelError, match="but has no c: another architecture"):
        list(blended({"c": torch.zeros(1)}.items(), base, 0.5))


def test_a_base_without_safetensors_is_refused(tmp_path):
    with pytest.raises(ModelError, match="must be a folder with safetensors files for an interpolation"):
        list(blended(TUNED.items(), BaseFiles(str(tmp_path), {}), 0.5))
