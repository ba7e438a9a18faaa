"""Which parameters decay."""

import torch
from torch import nn

from trainer.config.optim import OptimConfig
from trainer.optim.groups import decay_groups
from trainer.optim.optimizer import build_optimizer


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.layer = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=False)


def names_by_group(model, decay_embeddings=False, weight_decay=0.1):
    embeddings = {id(model.embed.weight)}
    groups = decay_groups(model.named_parameters(), weight_decay, decay_embeddings, embeddings)
    name_of = {id(p): n for n, p in model.named_parameters()}
    return {(g["name"], g["weight_decay"]): sorted(name_of[id(p)] for p in g["params"]) for g in groups}


def test_matrices_decay_and_norms_biases_and_embeddings_do_not():
    assert names_by_group(Tiny()) == {
        ("decay", 0.1): ["head.weight", "layer.weight"],
        ("no_decay", 0.0): ["embed.weight", "layer.bias", "norm.bias", "norm.weight"],
    }


def test_embeddings_decay_when_asked():
    assert "embed.weight" in names_by_group(Tiny(), decay_embeddings=True)["decay", 0.1]


def test_a_tied_head_counts_as_an_embedding_and_comes_once():
    model = Tiny()
    model.head.weight = model.embed.weight
    groups = names_by_group(model)
    assert groups["decay", 0.1] == ["layer.weight"]
    assert sum(len(names) for names in groups.values()) == 5


def test_frozen_parameters_are_left_out_and_empty_groups_too():
    model = Tiny()
    for parameter in [model.embed.weight, model.layer.bias, *model.norm.parameters()]:
        parameter.requires_grad = False
    assert list(names_by_group(model)) == [("decay", 0.1)]


def test_a_sharded_matrix_decays_by_its_full_shape():
    """Under ZeRO-3 the parameter itself is empty; without this every matrix would lose its decay."""
    matrix, bias = nn.Parameter(torch.empty(0)), nn.Parameter(torch.empty(0))
    matrix.ds_shape, bias.ds_shape = torch.Size([4, 4]), torch.Size([4])
    groups = decay_groups([("m", matrix), ("b", bias)], 0.1, False, set())
    assert [g["params"][0] is p for g, p in zip(groups, (matrix, bias), strict=True)] == [True, True]


def test_the_optimizer_gets_the_groups_and_options():
    model = Tiny()
    groups = decay_groups(model.named_parameters(), 0.1, False, set())
    optimizer = build_optimizer(groups, OptimConfig(lr=3e-4, betas=[0.8, 0.9], eps=1e-6), on_gpu=False)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]
    assert {(g["lr"], g["betas"], g["eps"]) for g in optimizer.param_groups} == {(3e-4, (0.8, 0.9), 1e-6)}
