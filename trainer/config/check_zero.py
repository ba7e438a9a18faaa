"""Rules about ZeRO and the keys that may be added to DeepSpeed's configuration. Pure.

DeepSpeed passes over top-level keys that it does not know, and some that it knows do nothing here: the loop, the
optimizer and the checkpoints are ours. So only keys that take effect may be added; each was tried.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from trainer.config.model import WITH_MASK, Attention
from trainer.config.optim import Offload, ZeroConfig
from trainer.config.rule import Problem, must

KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", dict: "a mapping"}
TAKEN: dict[str, type] = {
    "comms_logger": dict,
    "csv_monitor": dict,
    "data_types": dict,
    "dump_state": bool,
    "flops_profiler": dict,
    "gradient_predivide_factor": float,
    "memory_breakdown": bool,
    "prescale_gradients": bool,
    "steps_per_print": int,
    "timers": dict,
    "wall_clock_breakdown": bool,
    "zero_optimization": dict,
}
TAKEN_BY_ZERO: dict[str, type] = {
    "allgather_bucket_size": int,
    "allgather_partitions": bool,
    "contiguous_gradients": bool,
    "enable_sanity_checks": bool,
    "ignore_unused_parameters": bool,
    "leaf_module": dict,
    "log_trace_cache_warnings": bool,
    "memory_efficient_linear": bool,
    "offload_optimizer": dict,
    "offload_param": dict,
    "parameter_alignment": bool,
    "reduce_scatter": bool,
    "round_robin_gradients": bool,
    "stage3_allgather_sequential": bool,
    "stage3_model_persistence_threshold": int,
    "stage3_module_granularity_threshold": int,
    "stage3_use_all_reduce_for_fetch_params": bool,
    "use_multi_rank_bucket_allreduce": bool,
    "zero_hpz_partition_size": int,
    "zero_quantized_gradients": bool,
    "zero_quantized_nontrainable_weights": bool,
    "zero_quantized_weights": bool,
}
DECIDED = {
    "bf16": "zero.dtype",
    "expert_parallel": "zero.expert_parallel",
    "communication_data_type": "zero.reduce_dtype",
    "fp16": "zero.dtype",
    "gradient_accumulation_steps": "train.global_batch_tokens",
    "gradient_clipping": "optim.clip_norm",
    "optimizer": "optim",
    "scheduler": "schedule",
    "torch_autocast": "zero.dtype",
    "train_batch_size": "train.global_batch_tokens",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "tensorboard": "log.trackers",
    "wandb": "log.trackers",
    "activation_checkpointing": "model.checkpoint_layers",
    "zero_optimization.max_live_parameters": "zero.max_live_parameters",
    "zero_optimization.max_reuse_distance": "zero.max_reuse_distance",
    "zero_optimization.offload_optimizer.device": "zero.offload_optimizer",
    "zero_optimization.offload_param.device": "zero.offload_param",
    "zero_optimization.cpu_offload": "zero.offload_optimizer",
    "zero_optimization.cpu_offload_param": "zero.offload_param",
    "zero_optimization.overlap_comm": "zero.overlap_comm",
    "zero_optimization.param_persistence_threshold": "zero.persistence_threshold",
    "zero_optimization.prefetch_bucket_size": "zero.prefetch_bucket_size",
    "zero_optimization.reduce_bucket_size": "zero.reduce_bucket_size",
    "zero_optimization.stage": "zero.stage",
    "zero_optimization.stage3_max_live_parameters": "zero.max_live_parameters",
    "zero_optimization.stage3_max_reuse_distance": "zero.max_reuse_distance",
    "zero_optimization.stage3_param_persistence_threshold": "zero.persistence_threshold",
    "zero_optimization.stage3_prefetch_bucket_size": "zero.prefetch_bucket_size",
    "zero_optimization.sub_group_size": "zero.sub_group_size",
}
"""Keys of ours that decide the same."""
IDLE = {
    "aio": "nothing is kept on NVMe",
    "autotuning": "that is an own command of DeepSpeed's launcher; see zero=auto",
    "checkpoint": "checkpoints are written by this trainer",
    "compile": "the engine is never compiled",
    "data_efficiency": "data are read by this trainer",
    "dataloader_drop_last": "data are read by this trainer",
    "disable_python_gc": "the loop collects garbage itself",
    "gradient_allreduce_op": "the loss is divided for a mean over ranks",
    "hybrid_engine": "samples are made by replay generate",
    "managed_gradient_accumulation": "the loop says which micro-batch is the last",
    "pipeline": "there are no pipeline stages",
    "sequence_parallel_size": "packs are not spread over ranks",
    "tensor_parallel": "layers are not spread over ranks",
    "use_data_before_expert_parallelism": "neighbouring ranks share experts",
    "weight_quantization": "that is for inference; see tune.quantise",
    "zero_allow_untested_optimizer": "the optimizer is this trainer's",
    "zero_force_ds_cpu_optimizer": "the optimizer is this trainer's",
    "zero_optimization.compute_grad_norm": "every step reports and judges the norm",
    "zero_optimization.elastic_checkpoint": "checkpoints are written by this trainer",
    "zero_optimization.gather_16bit_weights_on_model_save": "checkpoints are written by this trainer",
    "zero_optimization.load_from_fp32_weights": "checkpoints are written by this trainer",
    "zero_optimization.pipeline_loading_checkpoint": "checkpoints are written by this trainer",
    "zero_optimization.stage3_gather_16bit_weights_on_model_save": "checkpoints are written by this trainer",
    "zero_optimization.stage3_gather_fp16_weights_on_model_save": "checkpoints are written by this trainer",
}
"""Keys that DeepSpeed knows and that do nothing here, or harm."""


def zero_problems(zero: ZeroConfig, attention: Attention) -> Iterator[Problem]:
    """Yield every broken rule."""
    if zero.stage not in (None, 0, 1, 2, 3):
        yield must("zero.stage", "0, 1, 2, 3 or null", zero.stage, "Use zero=zero2.")
    if zero.dtype == "fp32" and attention not in WITH_MASK:
        fix = "Set model.attention=auto: flash attention has no float32."
        yield must("model.attention", "auto, sdpa or eager with zero.dtype=fp32", attention.value, fix)
    if zero.dtype not in ("auto", "bf16", "fp32"):
        yield must("zero.dtype", "auto, bf16 or fp32", zero.dtype, "Set zero.dtype=auto.")
    if zero.offload_param is Offload.cpu and zero.stage != 3:
        yield must("zero.offload_param", "none below stage 3", "cpu", "Set zero.stage=3.")
    if zero.offload_optimizer is Offload.cpu and zero.stage == 0:
        yield must("zero.offload_optimizer", "none at stage 0", "cpu", "Set zero.stage=2.")
    yield from _added(zero.extra, "", TAKEN)
    of_zero = zero.extra.get("zero_optimization")
    if not isinstance(of_zero, Mapping):
        return
    yield from _added(of_zero, "zero_optimization.", TAKEN_BY_ZERO)
    for name in ("offload_optimizer", "offload_param"):
        section = of_zero.get(name)
        if isinstance(section, Mapping) and "device" in section:
            yield _decided(f"zero_optimization.{name}.device", section["device"])


def _added(section: Mapping[str, Any], prefix: str, taken: Mapping[str, type]) -> Iterator[Problem]:
    for name, value in section.items():
        key = f"{prefix}{name}"
        if key in DECIDED:
            yield _decided(key, value)
        elif key in IDLE:
            fix = f"Remove it: {IDLE[key]}."
            yield must(f"zero.extra.{key}", "left out, since it would do nothing", value, fix)
        elif name not in taken:
            known = {*taken, *(k.removeprefix(prefix) for k in (*DECIDED, *IDLE) if k.startswith(prefix))}
            near = difflib.get_close_matches(str(name), sorted(known), n=1, cutoff=0.6)
            fix = f"Did you mean `{near[0]}`?" if near else f"Use one of {', '.join(sorted(taken))}."
            yield must(f"zero.extra.{key}", "a key of DeepSpeed's that takes effect here", value, fix)
        elif not fits(value, taken[name]):
            yield must(
                f"zero.extra.{key}", KINDS[taken[name]], value, "See DeepSpeed's documentation of the key."
            )


def _decided(key: str, value: object) -> Problem:
    return must(f"zero.extra.{key}", "left out", value, f"Set {DECIDED[key]} instead.")


def fits(value: object, kind: type) -> bool:
    """Tell whether a value is of a kind; a whole number is a number, true is none."""
    if kind is dict:
        return isinstance(value, Mapping)
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, int | float) if kind is float else isinstance(value, kind)
