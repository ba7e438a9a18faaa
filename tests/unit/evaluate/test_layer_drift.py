"""Drift by layer: lengths of vectors worked out by hand."""

import math

import pytest
import torch

from trainer.errors import TrainerError
from trainer.evaluate import layer_drift
from trainer.evaluate.layer_drift import DriftGroup, DriftRecord, drift, group_of, read_drift

BASE = {
    "model.layers.0.self_attn.q_proj.weight": torch.tensor([[3.0, 0.0], [0.0, 4.0]]),
    "model.layers.0.self_attn.o_proj.weight": torch.zeros(2, 2),
    "model.layers.11.mlp.up_proj.weight": torch.ones(4, 4),
    "model.norm.weight": torch.tensor([2.0]),
}


@pytest.mark.parametrize("chunk", [3, 1 << 22])
def test_the_change_of_a_group_is_that_of_one_long_vector(monkeypatch, chunk):
    """Attention of layer 0: changes 1, 2 and 2 make 3, of a base of length 5. In all (9 + 16 + 0) / (25 + 16 + 4)."""
    monkeypatch.setattr(layer_drift, "CHUNK", chunk)
    tuned = {name: tensor.clone() for name, tensor in BASE.items()}
    tuned["model.layers.0.self_attn.q_proj.weight"][0, 0] += 1
    tuned["model.layers.0.self_attn.o_proj.weight"] += torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    tuned["model.layers.11.mlp.up_proj.weight"] += 1
    stream = [
        *tuned.items(),
        ("score.weight", torch.ones(1, 2)),
        ("model.counts", torch.ones(2, dtype=torch.long)),
    ]
    found = drift("step-8", stream, BASE.get)
    assert found.groups == (
        DriftGroup(0, "attention", 3.0, 5.0),
        DriftGroup(11, "MLP", 4.0, 4.0),
        DriftGroup(None, "norm", 0.0, 2.0),
    )
    assert found.groups[0].relative == 0.6 and found.total == pytest.approx(math.sqrt(25 / 45))
    assert found.num_new == 1


def test_kinds_go_by_the_names_of_tensors():
    wanted = {
        "model.layers.3.input_layernorm.weight": (3, "norm"),
        "model.embed_tokens.weight": (None, "embeddings"),
        "lm_head.weight": (None, "head"),
        "model.layers.3.mlp.experts.gate_up_proj": (3, "experts"),
        "transformer.h.7.attn.c_attn.weight": (7, "attention"),
        "model.layers.3.mamba.in_proj.weight": (3, "other"),
    }
    assert {name: group_of(name) for name in wanted} == wanted


def test_the_file_makes_a_round_trip_and_a_broken_one_is_named(tmp_path):
    found = drift("step-8", BASE.items(), BASE.get)
    path = tmp_path / "layer_drift.json"
    path.write_text(found.to_text())
    assert read_drift(path, "step-8") == found and read_drift(path, "step-9") is None
    path.write_text(found.to_text().replace("moved", "shifted"))
    with pytest.raises(TrainerError, match="must be as a run writes it"):
        read_drift(path, "step-8")


def test_all_kinds_of_a_layer_are_one_long_vector_and_checkpoints_before_make_a_round_trip(tmp_path):
    groups = (
        DriftGroup(0, "attention", 3.0, 6.0),
        DriftGroup(0, "MLP", 4.0, 8.0),
        DriftGroup(None, "head", 1.0, 1.0),
    )
    before = DriftRecord("step-00000004", groups, 0.5, 2)
    found = DriftRecord("step-00000008", groups[:1], 0.5, earlier=(before,))
    assert before.by_layer() == (DriftGroup(0, "all kinds", 5.0, 10.0),)
    path = tmp_path / "layer_drift.json"
    path.write_text(found.to_text())
    assert read_drift(path, "step-00000008") == found
    path.write_text(found.to_text().replace('"moved": 4.0', '"moved": "4"'))
    with pytest.raises(TrainerError, match="Delete it and measure again"):
        read_drift(path, "step-00000008")
