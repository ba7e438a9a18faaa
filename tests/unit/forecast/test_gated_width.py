"""What a gated MLP that is one function with its adapters does not keep, by hand."""

import dataclasses
import json

import pytest

from tests.house.tree import ROOT
from trainer.command.counted import find_shape, run_shape, tuned_weights
from trainer.command.fitting import fitted
from trainer.config.store import compose_config
from trainer.forecast.memory import _Layers

H200_GIB = 139.8

MLP_8192 = 8192 * 32 * 14336 * 2
"""Bytes of what goes into `down` of 32 layers of Llama-3-8B, 8,192 tokens."""


@pytest.mark.parametrize(
    ("words", "more", "saved"),
    [
        ([], {}, MLP_8192),
        (["tune.r=32"], {}, MLP_8192),
        (["tune.r=64"], {}, 0),
        (["tune.dora=true"], {}, 0),
        (["tune.dropout=0.1"], {}, 0),
        (["tune.target=[q_proj,gate_proj,up_proj]"], {}, 0),
        (["tune.target=[gate_proj,up_proj,down_proj]"], {}, MLP_8192),
        ([], {"hidden_act": "gelu"}, 0),
        ([], {"mlp_bias": True}, 0),
        (["zero=zero3"], {}, 0),
        (["model.kernels=none"], {}, 0),
        (["model.checkpoint_layers=12"], {}, MLP_8192 * 20 // 32),
    ],
)
def test_what_goes_into_the_last_product_is_kept_but_where_a_gated_mlp_is_one_function(
    tmp_path, words, more, saved
):
    config_json = json.loads((ROOT / "benchmarks/shapes/llama3_8b/config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config_json | more), encoding="utf-8")
    given = ["tune=lora", "zero=zero1", "data.seq_len=4096", "train.micro_batch_size=2", *words]
    given += [
        "train.global_batch_tokens=8192",
        f"model.path={tmp_path}",
        "run_dir=/nowhere",
        "zero.dtype=bf16",
    ]
    if not any("checkpoint_layers" in word for word in words):
        given.append("model.checkpoint_layers=0")
    config = fitted(compose_config(given), 1, can_load=True, here_gib=H200_GIB).config
    found, run = find_shape(config.model)[0], run_shape(config, 1)
    weights = tuned_weights(config, found)
    as_layers = dataclasses.replace(weights, gated_width=0.0)
    kept = [_Layers.of(found, run, one).saved for one in (as_layers, weights)]
    assert kept[0] - kept[1] == saved
