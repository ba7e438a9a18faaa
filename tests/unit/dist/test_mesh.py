"""What a rank computes on."""

import pytest
import torch

from trainer.dist.env import RankEnv
from trainer.dist.mesh import open_mesh
from trainer.errors import TopologyError


@pytest.mark.parametrize(
    ("local_rank", "accelerator", "said"),
    [(1, None, "is number 2 on its node and sees 1"), (0, "cpu", "DS_ACCELERATOR must be unset")],
)
def test_gpus_that_a_rank_sees_are_one_for_each_and_deepspeed_knows_of_them(
    monkeypatch, local_rank, accelerator, said
):
    """On two H200 with DS_ACCELERATOR=cpu: "No backend type associated with device type cpu", in a broadcast."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    if accelerator is not None:
        monkeypatch.setenv("DS_ACCELERATOR", accelerator)
    with pytest.raises(TopologyError, match=said) as error:
        open_mesh(RankEnv(local_rank, local_rank, 2, "127.0.0.1", 1), 10)
    assert "CUDA_VISIBLE_DEVICES=-1" in str(error.value)
