"""How many ranks a machine starts."""

import pytest
import torch

from tests.helpers.tiny import tiny_config
from trainer.errors import TopologyError
from trainer.start.ranks import count_ranks


def test_ranks_are_as_asked_else_one_a_gpu_else_one(tmp_path):
    cluster = tiny_config(tmp_path).cluster
    assert count_ranks(cluster) == max(torch.cuda.device_count(), 1)
    cluster.ranks_per_node = 3
    assert count_ranks(cluster) == 3


def test_more_ranks_than_visible_gpus_are_refused_unless_they_are_for_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    cluster = tiny_config(tmp_path).cluster
    cluster.ranks_per_node = 3
    with pytest.raises(TopologyError, match=r"`cluster.ranks_per_node` must be at most the 2 GPUs .* is 3 "):
        count_ranks(cluster)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert count_ranks(cluster) == 3
