"""Keys added to DeepSpeed's configuration: those that take effect, and a sentence for every other."""

import pytest

from trainer.config.check_zero import zero_problems
from trainer.config.model import Attention
from trainer.config.optim import ZeroConfig


def said(extra):
    return [found.sentence for found in zero_problems(ZeroConfig(extra=extra), Attention.auto)]


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"wall_clock_breakdown": True},
        {"steps_per_print": 7},
        {"flops_profiler": {"enabled": True}},
        {"zero_optimization": {"zero_hpz_partition_size": 8, "zero_quantized_weights": True}},
        {"zero_optimization": {"offload_optimizer": {"ratio": 0.5}}},
    ],
)
def test_keys_that_take_effect_are_taken(extra):
    assert said(extra) == []


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ({"fp16": {}}, "`zero.extra.fp16` must be left out, but is {} instead. Set zero.dtype instead."),
        ({"bf16": 1}, "`zero.extra.bf16` must be left out, but is 1 instead. Set zero.dtype instead."),
        ({"train_batch_size": 8}, "must be left out, but is 8 instead. Set train.global_batch_tokens instead."),
        ({"gradient_clipping": 1}, "Set optim.clip_norm instead."),
        ({"communication_data_type": "fp32"}, "Set zero.reduce_dtype instead."),
        ({"zero_optimization": {"stage": 2}}, ".stage` must be left out, but is 2 instead. Set zero.stage"),
        ({"zero_optimization": {"offload_param": {"device": "nvme"}}}, ".offload_param.device` must be left out"),
        ({"compile": 1}, "since it would do nothing, but is 1 instead. Remove it: the engine is never compiled."),
        ({"checkpoint": {}}, "Remove it: checkpoints are written by this trainer."),
        ({"zero_optimization": {"elastic_checkpoint": True}}, "Remove it: checkpoints are written by this trainer."),
        ({"wall_clock_brakdown": True}, "here, but is True instead. Did you mean `wall_clock_breakdown`?"),
        ({"zero_optimization": {"hpz_partition_size": 8}}, "Did you mean `zero_hpz_partition_size`?"),
        ({"zzz": 1}, "Use one of comms_logger, csv_monitor"),
        ({"zero_optimization": 3}, "`zero.extra.zero_optimization` must be a mapping, but is 3 instead."),
        ({"steps_per_print": True}, "`zero.extra.steps_per_print` must be a whole number, but is True instead."),
        ({"dump_state": "maybe"}, "`zero.extra.dump_state` must be true or false, but is 'maybe' instead."),
        ({1: 2}, "`zero.extra.1` must be a key of DeepSpeed's that takes effect here"),
    ],
)  # fmt: skip
def test_every_other_key_is_a_sentence(extra, sentence):
    assert len(said(extra)) == 1 and sentence in said(extra)[0]


def test_all_problems_are_said_at_once():
    assert (
        len(said({"fp16": 1, "bf16": 1, "compile": {}, "zero_optimization": {"stage": 1, "nothing": 2}})) == 5
    )
