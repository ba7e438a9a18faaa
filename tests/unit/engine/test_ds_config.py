"""The DeepSpeed dictionary of every zero/*.yaml, as files; to renew them: PALIMPSEST_UPDATE_GOLDEN=1."""

import json
import os
from pathlib import Path

import pytest

from trainer.config.optim import OptimConfig, ReduceDtype, ZeroConfig
from trainer.config.store import compose_config
from trainer.engine.batch import batch_shape
from trainer.engine.ds_config import deepspeed_dict, merge
from trainer.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT / "tests" / "golden" / "ds_config"
OPTIONS = sorted(path.stem for path in (ROOT / "conf" / "zero").glob("*.yaml") if path.stem != "auto")
"""`auto` is one of them by the time a run is frozen: tests/unit/command/test_fitting.py."""
ACCUMULATING = batch_shape(131072, 2048, 1, 8)
SINGLE = batch_shape(131072, 2048, 8, 8)


def golden_shape(option):
    return SINGLE if option == "zero0" else ACCUMULATING


def test_there_are_six_zero_options_and_a_golden_file_for_each():
    assert len(OPTIONS) == 6
    assert sorted(path.stem for path in GOLDEN.glob("*.json")) == OPTIONS


@pytest.mark.parametrize("option", OPTIONS)
def test_the_dictionary_of_every_zero_option_is_the_golden_one(option):
    config = compose_config([f"zero={option}", "zero.dtype=bf16"])
    made = deepspeed_dict(config.zero, config.optim, golden_shape(option), on_gpu=True)
    path = GOLDEN / f"{option}.json"
    if os.environ.get("PALIMPSEST_UPDATE_GOLDEN"):
        path.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    assert made == json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("on_gpu", [True, False])
def test_nothing_is_auto_and_the_optimizer_is_ours(option, on_gpu):
    config = compose_config([f"zero={option}", "zero.dtype=bf16"])
    made = deepspeed_dict(config.zero, config.optim, golden_shape(option), on_gpu)
    text = json.dumps(made)
    assert "auto" not in text
    assert not {"optimizer", "scheduler", "fp16"} & set(made)
    batch = made["train_micro_batch_size_per_gpu"] * made["gradient_accumulation_steps"] * 8
    assert made["train_batch_size"] == batch == 64


def test_extra_is_merged_last_and_section_by_section():
    zero = ZeroConfig(
        stage=3,
        dtype="bf16",
        extra={
            "zero_optimization": {"zero_hpz_partition_size": 8, "overlap_comm": False},
            "dump_state": True,
        },
    )
    section = deepspeed_dict(zero, OptimConfig(), SINGLE, True)["zero_optimization"]
    assert section["zero_hpz_partition_size"] == 8 and section["overlap_comm"] is False
    assert section["stage"] == 3 and section["sub_group_size"] == zero.sub_group_size
    assert deepspeed_dict(zero, OptimConfig(), SINGLE, True)["dump_state"] is True


def test_merging_changes_neither_side():
    base, extra = {"a": {"b": 1}, "c": 1}, {"a": {"d": 2}, "c": {"e": 1}}
    assert merge(base, extra) == {"a": {"b": 1, "d": 2}, "c": {"e": 1}}
    assert base == {"a": {"b": 1}, "c": 1} and extra == {"a": {"d": 2}, "c": {"e": 1}}


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_gradients_accumulate_in_fp32_where_there_is_something_to_accumulate(stage):
    made = deepspeed_dict(ZeroConfig(stage=stage, dtype="bf16"), OptimConfig(), ACCUMULATING, True)
    assert made["data_types"] == {"grad_accum_dtype": "fp32"}
    assert "data_types" not in deepspeed_dict(
        ZeroConfig(stage=stage, dtype="bf16"), OptimConfig(), SINGLE, True
    )


def test_stage_0_would_accumulate_in_bf16_and_is_refused():
    with pytest.raises(ConfigError, match=r"`zero\.stage` must be 1 or more"):
        deepspeed_dict(ZeroConfig(stage=0, dtype="bf16"), OptimConfig(), ACCUMULATING, True)
    deepspeed_dict(ZeroConfig(stage=0, dtype="fp32"), OptimConfig(), ACCUMULATING, True)


def test_reduction_in_fp32_is_asked_for_by_name():
    zero = ZeroConfig(stage=2, dtype="bf16", reduce_dtype=ReduceDtype.fp32)
    assert deepspeed_dict(zero, OptimConfig(), SINGLE, True)["communication_data_type"] == "fp32"


@pytest.mark.parametrize("option", OPTIONS)
def test_float32_is_the_same_without_bf16_and_its_wider_copies(option):
    config = compose_config([f"zero={option}", "zero.dtype=fp32", "zero.reduce_dtype=fp32"])
    made = deepspeed_dict(config.zero, config.optim, golden_shape(option), on_gpu=True)
    expected = json.loads((GOLDEN / f"{option}.json").read_text(encoding="utf-8"))
    expected.pop("data_types", None)
    assert made == expected | {"bf16": {"enabled": False}}
