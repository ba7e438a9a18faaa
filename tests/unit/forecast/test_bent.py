"""Memory of logits that a model changes behind its output layer, while replay is compared with the base.

Against what the code of the loss holds at once, its kernel stood in for by one that writes over what it is given.
"""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.unit.forecast.test_memory import BIG, LLAMA
from trainer.command.counted import find_shape, run_shape
from trainer.command.fitting import fitted
from trainer.config.model import ModelConfig
from trainer.config.store import compose_config
from trainer.forecast.activations import bend_bytes
from trainer.forecast.memory import forecast, full_weights
from trainer.model.head.bend import Bend
from trainer.model.head.divergence import TopTokens
from trainer.model.head.nll import _fused_step

ROWS, VOCAB = 8, 4096
SIZES = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}


class Held(TorchDispatchMode):
    """Knows the most bytes that tensors made meanwhile held at once, beside one that was there."""

    def __init__(self, beside):
        super().__init__()
        self.most, self._live, self._beside = 0, {}, beside.untyped_storage()._cdata

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata == self._beside:
                    continue
                self._live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._live = {key: one for key, one in self._live.items() if not one[0].expired()}
        self.most = max(self.most, sum(size for _, size in self._live.values()))
        return made


def in_place(logits, labels, base, needs_grad):
    """Stand in for the kernel, which takes no memory but that of numbers a row."""
    return torch.zeros(len(logits)), logits.mul_(0.5), torch.zeros(1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("bend", "kind"),
    [
        (Bend(), {}),
        (Bend(0.5), {"scales_logits": True}),
        (Bend(1.0, 30.0), {"caps_logits": True}),
        (Bend(0.5, 30.0), {"scales_logits": True, "caps_logits": True}),
    ],
)
def test_a_chunk_takes_what_the_loss_holds_at_once(monkeypatch, bend, kind, dtype):
    kernel = SimpleNamespace(fused_divergence_step=in_place)
    monkeypatch.setitem(sys.modules, "trainer.model.head.fused_divergence", kernel)
    monkeypatch.setitem(
        sys.modules, "trainer.model.head.fused_softmax", SimpleNamespace(fused_softmax_step=None)
    )
    logits = torch.randn(ROWS, VOCAB, dtype=dtype)
    base = TopTokens(
        torch.tensor([1]), np.array([1]), torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 2), 1.0
    )
    with Held(logits) as held:
        _fused_step(logits, torch.zeros(ROWS, dtype=torch.int64), base, True, bend)
    counted = ROWS * VOCAB * bend_bytes(replace(LLAMA, **kind), dtype.itemsize)
    assert held.most == pytest.approx(counted, abs=1000)


def test_it_is_part_of_the_peak_where_the_base_is_asked():
    run = replace(BIG, seq_len=8192, loss_chunk_tokens=8192, stage=3, micro_batch_size=2)
    capped = replace(LLAMA, caps_logits=True)
    plain, bent, asked = (
        forecast(shape, one, full_weights(LLAMA)).parts
        for shape, one in (
            (LLAMA, replace(run, asks_base=True)),
            (capped, run),
            (capped, replace(run, asks_base=True)),
        )
    )
    assert plain == bent and asked.head - plain.head == 8192 * LLAMA.vocab_size * 16


@pytest.mark.parametrize(
    ("config", "scales", "caps"),
    [
        ({"model_type": "llama"}, False, False),
        ({"model_type": "gemma2", "head_dim": 8}, False, True),
        ({"model_type": "gemma2", "head_dim": 8, "final_logit_softcapping": None}, False, False),
        ({"model_type": "gemma3_text", "head_dim": 8}, False, False),
        ({"model_type": "gemma3_text", "head_dim": 8, "final_logit_softcapping": 30.0}, False, True),
        ({"model_type": "granite", "logits_scaling": 8.0}, True, False),
        ({"model_type": "nanochat", "final_logit_softcapping": 15.0}, False, True),
    ],
)
def test_what_a_model_does_to_its_logits_is_known_of_its_config(tmp_path, config, scales, caps):
    (tmp_path / "config.json").write_text(json.dumps({**SIZES, **config}))
    shape, _ = find_shape(ModelConfig(path=str(tmp_path)))
    assert (shape.scales_logits, shape.caps_logits) == (scales, caps)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_the_base_is_asked_where_replay_has_a_weight_for_it(beta):
    words = ["model=tiny", "train.max_steps=1", "train.micro_batch_size=1", f"replay.kl.beta={beta}"]
    config = fitted(compose_config(words), 1, can_load=False, here_gib=80.0).config
    assert run_shape(config, 1).asks_base == (beta > 0)
