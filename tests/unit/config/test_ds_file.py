"""Another trainer's DeepSpeed file: what its keys become, what is left out, and a sentence for what cannot be."""

import json
import logging

import pytest

from trainer.config.ds_sections import read_sections
from trainer.config.optim import Offload, ReduceDtype, ScheduleName
from trainer.config.store import compose_config, load_config, to_yaml
from trainer.errors import ConfigError

HF_STAGE_2 = {
    "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16},
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
    },
    "scheduler": {
        "type": "WarmupLR",
        "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"},
    },
    "zero_optimization": {
        "stage": 2,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "allgather_partitions": True,
        "allgather_bucket_size": 2e8,
        "overlap_comm": True,
        "reduce_scatter": True,
        "reduce_bucket_size": 2e8,
        "contiguous_gradients": True,
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 2000,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": False,
}
"""As in the documentation of the HF Trainer."""

AXOLOTL_ZERO_3 = {
    "zero_force_ds_cpu_optimizer": False,
    "zero_allow_untested_optimizer": True,
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "sub_group_size": 0,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": 0,
        "stage3_max_reuse_distance": 0,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "bf16": {"enabled": True},
    "fp16": {"enabled": "auto", "auto_cast": False, "loss_scale": 0},
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": False,
}

LLAMA_FACTORY_OFFLOAD = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_allow_untested_optimizer": True,
    "fp16": {"enabled": "auto", "loss_scale_window": 1000, "hysteresis": 2, "min_loss_scale": 1},
    "bf16": {"enabled": "auto"},
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "offload_param": {"device": "cpu", "pin_memory": True},
        "overlap_comm": False,
        "contiguous_gradients": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
        "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
}


@pytest.fixture
def composed(tmp_path, caplog):
    """Return a configuration composed with a file, and what was said of it."""

    def compose(content, *words):
        path = tmp_path / "ds_config.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            config = compose_config(["model=tiny", f"zero.ds_config={path}", *words])
        return config, caplog.text

    return compose


def test_the_file_of_hf_trainer_becomes_fields_and_auto_leaves_ours(composed):
    config, said = composed(HF_STAGE_2)
    zero, ours = config.zero, compose_config(["model=tiny"])
    assert (zero.stage, zero.offload_optimizer, zero.reduce_bucket_size) == (2, Offload.cpu, 200_000_000)
    assert isinstance(zero.reduce_bucket_size, int)
    assert zero.dtype == "auto" and config.train == ours.train and config.optim == ours.optim
    assert config.schedule.name is ScheduleName.constant and config.schedule.warmup_steps is None
    assert zero.extra["zero_optimization"]["allgather_bucket_size"] == 200_000_000
    assert zero.extra["steps_per_print"] == 2000 and "stage" not in zero.extra["zero_optimization"]
    assert "zero.stage=2 (was 3)" in said and "schedule.name=constant (was cosine)" in said
    assert "scheduler.params.warmup_type: the warm-up is linear" in said
    assert "auto      as this trainer has it: optimizer.params.lr, optimizer.params.betas" in said


def test_the_file_of_axolotl_becomes_fields(composed):
    config, said = composed(AXOLOTL_ZERO_3)
    zero = config.zero
    assert (zero.stage, zero.dtype, zero.sub_group_size) == (3, "bf16", 0)
    assert (zero.max_live_parameters, zero.max_reuse_distance) == (0, 0)
    assert "stage3_gather_16bit_weights_on_model_save: checkpoints are written by this trainer" in said
    assert "fp16.auto_cast: only `enabled` is read" in said
    assert "zero_allow_untested_optimizer: the optimizer is this trainer's" in said


def test_the_file_of_llama_factory_becomes_fields(composed):
    zero = composed(LLAMA_FACTORY_OFFLOAD)[0].zero
    assert (zero.offload_optimizer, zero.offload_param, zero.overlap_comm) == (
        Offload.cpu,
        Offload.cpu,
        False,
    )
    assert zero.extra["zero_optimization"]["offload_param"] == {"pin_memory": True}
    assert (zero.dtype, zero.max_reuse_distance) == ("auto", 1_000_000_000)


def test_numbers_of_a_plain_deepspeed_file_become_the_batch_the_optimizer_and_the_schedule(composed):
    file = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 4,
        "gradient_clipping": 0.5,
        "communication_data_type": "fp32",
        "optimizer": {"type": "Adam", "params": {"lr": 2e-5, "betas": [0.8, 0.99], "weight_decay": 0}},
        "scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 30, "total_num_steps": 900}},
        "bf16": {"enabled": False},
        "zero_optimization": {"stage": 1, "cpu_offload": True},
    }
    config, said = composed(file, "cluster.ranks_per_node=8", "cluster.num_nodes=2", "data.seq_len=1024")
    assert config.train.micro_batch_size == 2
    assert config.train.global_batch_tokens == 2 * 4 * 16 * 1024
    assert (config.optim.clip_norm, config.optim.lr, config.optim.betas) == (0.5, 2e-5, [0.8, 0.99])
    assert (config.schedule.name, config.schedule.warmup_steps) == (ScheduleName.linear, 30)
    assert config.schedule.final_frac == 0 and config.zero.reduce_dtype is ReduceDtype.fp32
    assert config.zero.dtype == "fp32" and config.zero.offload_optimizer is Offload.cpu
    assert "total_num_steps: train.max_steps" in said


def test_a_batch_over_all_ranks_needs_no_number_of_ranks(composed):
    config, _ = composed({"train_batch_size": 64}, "data.seq_len=512")
    assert config.train.global_batch_tokens == 64 * 512


def test_a_word_of_the_command_line_is_over_the_file_and_said(composed):
    file = {"zero_optimization": {"stage": 3}, "gradient_accumulation_steps": 4, "wall_clock_breakdown": True}
    words = ["zero.stage=1", "train.global_batch_tokens=8192", "zero.extra.wall_clock_breakdown=false"]
    config, said = composed(file, *words)
    assert config.zero.stage == 1 and config.train.global_batch_tokens == 8192
    assert config.zero.extra == {"wall_clock_breakdown": False}
    assert "kept      zero.stage=1 of the command line and not 3" in said
    assert "left out  gradient_accumulation_steps: train.global_batch_tokens=8192 says it" in said


def test_the_frozen_configuration_shows_the_outcome_and_needs_no_file(composed, tmp_path):
    config, _ = composed(AXOLOTL_ZERO_3)
    frozen = tmp_path / "config.yaml"
    frozen.write_text(to_yaml(config))
    (tmp_path / "ds_config.json").unlink()
    assert load_config(frozen) == config and config.zero.ds_config is None


def test_a_chosen_option_that_says_otherwise_is_refused(composed):
    sentence = r"`zero` must be left out .* but zero=zero2 has zero.stage=2 and .* 3 instead. Leave one out"
    with pytest.raises(ConfigError, match=sentence):
        composed(AXOLOTL_ZERO_3, "zero=zero2")
    assert composed(AXOLOTL_ZERO_3, "zero=zero3")[0].zero.stage == 3
    assert composed(AXOLOTL_ZERO_3, "zero=auto")[0].zero.stage == 3


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"bf16": {"enabled": true},}', "must be a JSON file, but"),
        ('{"bf16": {}, "bf16": {}}', "it has the key bf16 twice"),
        ("[1]", "must hold one JSON object, but"),
        ('{"gradient_accumulation_steps": 8}', "`cluster.ranks_per_node` must be said with"),
    ],
)
def test_a_file_that_cannot_be_used_is_a_sentence(composed, content, sentence):
    with pytest.raises(ConfigError) as caught:
        composed(content)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"stage": 4}, "must have zero_optimization.stage as 0, 1, 2 or 3, but f.json has 4 instead."),
        ({"stage": True}, "as 0, 1, 2 or 3, but f.json has True instead."),
        (3, "must have zero_optimization as a mapping or auto, but f.json has 3 instead."),
        (
            {"offload_param": {"device": "nvme"}},
            "as cpu or none, but f.json has 'nvme' instead. Nothing is kept",
        ),
        ({"reduce_bucket_size": "5e8"}, "reduce_bucket_size as a whole number from 0 up or auto, but"),
        ({"reduce_bucket_size": -1}, "as a whole number from 0 up or auto, but f.json has -1"),
        ({"overlap_com": True}, "Did you mean `zero_optimization.overlap_comm`?"),
    ],
)
def test_a_value_of_zero_that_cannot_be_taken_is_a_sentence(section, sentence):
    (found,) = read_sections({"zero_optimization": section}, "f.json").problems
    assert found.sentence.startswith("`zero.ds_config` must have ") and sentence in found.sentence


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ({"fp16": {"enabled": True}}, "as false or auto, but f.json has True instead. There is no fp16 here"),
        (
            {"optimizer": {"type": "Lion"}},
            "must have optimizer.type as AdamW, but f.json has 'Lion' instead.",
        ),
        ({"scheduler": {"type": "OneCycle"}}, "as WarmupLR, WarmupDecayLR or WarmupCosineLR, but"),
        ({"gradient_clipping": float("nan")}, "gradient_clipping as a number from 0 up or auto, but"),
        (
            {
                "scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 1e-4}},
                "optimizer": {"type": "AdamW", "params": {"lr": 2e-5}},
            },
            "scheduler.params.warmup_max_lr as the optimizer's lr, 2e-05, but f.json has 0.0001 instead.",
        ),
        ({"communication_data_type": "fp16"}, "as bf16 or fp32, but f.json has 'fp16' instead."),
    ],
)
def test_another_value_that_cannot_be_taken_is_a_sentence(file, sentence):
    (found,) = read_sections(file, "f.json").problems
    assert sentence in found.sentence


def test_a_missing_file_is_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"absent.json cannot: No such file or directory"):
        compose_config([f"zero.ds_config={tmp_path / 'absent.json'}"])


def test_all_problems_of_a_file_are_said_at_once():
    file = {"fp16": {"enabled": True}, "zero_optimization": {"stage": 9, "offload_param": {"device": "nvme"}}}
    assert len(read_sections(file, "a.json").problems) == 3
