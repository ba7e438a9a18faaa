"""What rounding takes back of an update, counted by hand."""

import pytest
import torch
from safetensors.torch import save_file

from trainer.export.rounding import Rounding
from trainer.model.base_files import BaseFiles
from trainer.model.tensor_files import weight_files

# bf16 has 8 bits of mantissa: beside 1 its steps are 2**-8 below and 2**-7 above.
BASE = torch.tensor([1.0, 1.0, 1.0, 1.0, -2.0])
TUNED = torch.tensor([1.0, 1.0 + 2.0**-9, 1.0 + 2.0**-7, 1.0 - 2.0**-10, -2.5])


@pytest.fixture
def base(tmp_path):
    tensors = {"a": BASE.bfloat16(), "grown": torch.zeros(2, 2), "other": torch.zeros(3)}
    save_file(tensors, str(tmp_path / "model.safetensors"))
    return BaseFiles(str(tmp_path), weight_files(str(tmp_path)))


def counted(base, dtype, tensors):
    rounding = Rounding(base, dtype)
    assert [name for name, _ in rounding.watch(tensors.items())] == list(tensors)
    return rounding.num_moved, rounding.num_lost


def test_small_steps_are_lost_in_bfloat16_and_none_in_float32(base):
    assert counted(base, torch.bfloat16, {"a": TUNED}) == (4, 2)
    assert counted(base, torch.float32, {"a": TUNED}) == (4, 0)


def test_what_did_not_move_is_not_counted(base):
    rounding = Rounding(base, torch.bfloat16)
    list(rounding.watch([("a", BASE)]))
    assert (rounding.num_moved, rounding.num_lost, rounding.lost_share) == (0, 0, 0.0)


def test_new_rows_other_shapes_and_strangers_are_left_out(base):
    grown = torch.cat([torch.full((1, 2), 1e-3), torch.zeros(1, 2), torch.ones(3, 2)])
    tensors = {
        "grown": grown,
        "other": torch.ones(3, 3),
        "stranger": torch.ones(4),
        "count": torch.tensor([3]),
    }
    assert counted(base, torch.bfloat16, tensors) == (2, 0)


def test_a_base_without_files_counts_nothing(tmp_path):
    assert counted(BaseFiles(str(tmp_path), {}), torch.bfloat16, {"a": TUNED}) == (0, 0)
