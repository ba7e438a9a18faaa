"""What a configuration means for memory and time: counts of its model, of what trains of it, and of a step.

Arithmetic over config.json; loads no torch for known architectures.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

from trainer.config.begun import may_be_uneven
from trainer.config.model import WITH_MASK, Attention, Kernels, ModelConfig, ModelHead, ModelKind
from trainer.config.objective import ObjectiveKind
from trainer.config.optim import Offload
from trainer.config.schema import RunConfig
from trainer.config.tune import ALL_LINEAR, TuneMethod
from trainer.engine.batch import batch_shape
from trainer.engine.ds_config import deepspeed_dict
from trainer.errors import ConfigError
from trainer.forecast.config_json import read_config_json, shipped_shapes
from trainer.forecast.memory import RunShape, Weights
from trainer.forecast.shapes import DecoderShape, decoder_shape, knows
from trainer.forecast.tuned import count_trained, needs_names, weights_of
from trainer.model.attention import is_flash_installed
from trainer.model.dtype import ELEMENT_BYTES
from trainer.model.embedded import EMBEDDED
from trainer.model.tiny import CONTEXT, VOCAB


def known_shape(config: RunConfig) -> DecoderShape | None:
    """Return the model's counts; None where only torch can count the model or what trains of it."""
    found, origin = config_json(config.model)
    return _counted(found, origin, config.model) if knows(found) and not needs_names(config.tune) else None


def as_installed(model: ModelConfig, run: RunShape) -> RunShape:
    """Take `auto` for what is installed here."""
    has_flash = model.attention is not Attention.auto or is_flash_installed()
    has_liger = model.kernels is not Kernels.auto or importlib.util.find_spec("liger_kernel") is not None
    return dataclasses.replace(run, is_flash=run.is_flash and has_flash, is_fused=run.is_fused and has_liger)


def tuned_weights(config: RunConfig, shape: DecoderShape) -> Weights:
    """Return what trains and what is frozen, of every method.

    Raises:
        ConfigError: The model cannot be tuned so, such as that no linear layer has one of the names.
    """
    tune = config.tune
    num_new_tokens = len(config.model.new_tokens)
    trained = count_trained(shape, tune, num_new_tokens)
    found = config_json(config.model)[0]
    if trained is None or (tune.method is TuneMethod.lora and not knows(found)):
        from trainer.model.meta import meta_trained

        trained = meta_trained(found, tune, num_new_tokens, config.model)
    if not trained.num_trainable:
        names = ", ".join(sorted({linear.name.rsplit(".", 1)[-1] for linear in shape.linears}))
        raise ConfigError(
            f"`tune.target` must name linear layers of the model ({names}), but is {tune.target} instead. Set "
            f"tune.target=[{ALL_LINEAR}]."
        )
    return weights_of(shape, tune, trained, ELEMENT_BYTES[config.zero.dtype])


def find_shape(model: ModelConfig) -> tuple[DecoderShape, str]:
    """Return the counts of the configured model and where they are from."""
    config, origin = config_json(model)
    if knows(config):
        return _counted(config, origin, model), origin
    from trainer.model.meta import meta_shape

    local = Path(model.path).expanduser()
    source = str(local) if local.exists() else model.path
    return meta_shape(config, source, model), f"{origin}, built on the meta device"


def _counted(found: dict[str, Any], origin: str, model: ModelConfig) -> DecoderShape:
    shape = decoder_shape(found, origin)
    return shape if model.head is ModelHead.language else shape.scoring()


def config_json(model: ModelConfig) -> tuple[dict[str, Any], str]:
    """Return the contents of the model's config.json and where they are from."""
    match model.kind:
        case ModelKind.tiny:
            sizes = {"vocab_size": VOCAB, "max_position_embeddings": CONTEXT, **model.tiny}
            return {"model_type": "llama", **sizes}, "the tiny model"
        case ModelKind.embedded:
            return shipped_shapes()[EMBEDDED], EMBEDDED
        case _:
            return read_config_json(model.path, model.revision)


def run_shape(config: RunConfig, num_ranks: int) -> RunShape:
    """Return what of a configuration decides memory on a GPU.

    `auto` attention and kernels are taken for flash attention and Liger, which a GPU machine has.

    Raises:
        TrainerError: Training would refuse the batch or the ZeRO section.
    """
    zero, model = config.zero, config.model
    assert zero.stage is not None and model.checkpoint_layers is not None, "fitted() comes first"
    train, seq_len, is_movable = config.train, config.data.seq_len, may_be_uneven(config, num_ranks)
    batch = batch_shape(
        train.global_batch_tokens,
        seq_len,
        train.micro_batch_size,
        num_ranks,
        is_movable,
        train.sequence_parallel,
    )
    deepspeed_dict(zero, config.optim, batch, on_gpu=True)
    return RunShape(
        stage=zero.stage,
        world_size=num_ranks,
        micro_batch_size=batch.micro_batch_size,
        seq_len=batch.seq_len,
        num_micro_steps=batch.num_micro_steps,
        sequence_parallel=batch.sequence_parallel,
        checkpoint_layers=model.checkpoint_layers,
        loss_chunk_tokens=model.loss_chunk_tokens,
        element_bytes=ELEMENT_BYTES[config.zero.dtype],
        is_flash=zero.dtype == "bf16"
        and model.attention not in (Attention.sdpa, Attention.eager)
        and not config.tune.is_virtual,
        names_flash=model.attention not in WITH_MASK,
        is_eager=model.attention is Attention.eager,
        is_fused=model.kernels is not Kernels.none,
        overlap_comm=zero.overlap_comm,
        reduce_bucket_size=zero.reduce_bucket_size,
        prefetch_bucket_size=zero.prefetch_bucket_size,
        max_live_parameters=zero.max_live_parameters,
        sub_group_size=zero.sub_group_size,
        expert_parallel=zero.expert_parallel,
        offload_optimizer=zero.offload_optimizer is Offload.cpu,
        offload_param=zero.offload_param is Offload.cpu,
        has_extra=bool(zero.extra),
        asks_base=config.replay.kl.beta > 0,
        distils=config.objective.kind is ObjectiveKind.distill,
        asks_log_probs=config.objective.kind is ObjectiveKind.preference,
        holds_start=config.optim.base_decay > 0,
    )
