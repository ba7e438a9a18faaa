"""Make the DeepSpeed dictionary from our sections. Pure; no "auto" anywhere."""

from __future__ import annotations

from typing import Any

from trainer.config.optim import Offload, OptimConfig, ReduceDtype, ZeroConfig
from trainer.engine.batch import BatchShape
from trainer.errors import ConfigError


def deepspeed_dict(zero: ZeroConfig, optim: OptimConfig, shape: BatchShape, on_gpu: bool) -> dict[str, Any]:
    """Return the complete DeepSpeed configuration; `zero.extra` is merged last.

    Gradients of several micro-steps accumulate in fp32; a single one has nothing to accumulate and saves
    the buffer. Stage 0 has no fp32 buffer in DeepSpeed (NotImplementedError for bf16 with fp32
    accumulation), so bf16 stage 0 with several micro-steps is refused.

    Raises:
        ConfigError: bf16 at stage 0 with gradient accumulation.

    Source: DeepSpeed 0.19.8 `_do_optimizer_sanity_check`; option notes in trainer/config/optim.py.
    """
    bf16 = zero.dtype == "bf16"
    assert zero.stage is not None and zero.dtype != "auto", "fitting.py fills them in before a run is frozen"
    if bf16 and zero.stage == 0 and shape.num_micro_steps > 1:
        raise ConfigError(
            "`zero.stage` must be 1 or more in bf16 with gradient accumulation, but is 0 with "
            f"{shape.num_micro_steps} micro-steps instead: stage 0 would add them up in bf16. Set zero=zero1, or "
            "raise train.micro_batch_size."
        )
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": shape.micro_batch_size,
        "gradient_accumulation_steps": shape.num_micro_steps,
        "train_batch_size": shape.micro_batch_size * shape.num_micro_steps * shape.world_size,
        "gradient_clipping": optim.clip_norm,
        "steps_per_print": 2**31,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": bf16},
        "zero_optimization": _zero_section(zero),
    }
    if bf16 and zero.stage > 0 and shape.num_micro_steps > 1:
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    if bf16 and zero.reduce_dtype is ReduceDtype.fp32:
        config["communication_data_type"] = "fp32"
    if not on_gpu:
        config["zero_optimization"]["overlap_comm"] = False
    return merge(config, zero.extra)


def _zero_section(zero: ZeroConfig) -> dict[str, Any]:
    section: dict[str, Any] = {"stage": zero.stage}
    if zero.stage == 0:
        return section
    section |= {
        "overlap_comm": zero.overlap_comm,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": zero.reduce_bucket_size,
        "allgather_bucket_size": max(zero.reduce_bucket_size, 1),
    }
    if zero.offload_optimizer is Offload.cpu:
        section["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if zero.stage == 3:
        section |= {
            "stage3_prefetch_bucket_size": zero.prefetch_bucket_size,
            "stage3_max_live_parameters": zero.max_live_parameters,
            "stage3_max_reuse_distance": zero.max_reuse_distance,
            "stage3_param_persistence_threshold": zero.persistence_threshold,
            "sub_group_size": zero.sub_group_size,
            "log_trace_cache_warnings": True,
            "stage3_gather_16bit_weights_on_model_save": False,
        }
        if zero.offload_param is Offload.cpu:
            section["offload_param"] = {"device": "cpu", "pin_memory": True}
    return section


def merge(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """Return base with extra merged into it, section by section; extra wins."""
    merged = dict(base)
    for key, value in extra.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
