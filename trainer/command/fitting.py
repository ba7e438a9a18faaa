"""What a configuration means for memory, the two settings that memory decides when they are null, and `zero.dtype`.

Arithmetic over config.json; loads no torch for known architectures.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trainer.config.begun import may_be_uneven
from trainer.config.check import find_problems
from trainer.config.model import WITH_MASK, Attention, Kernels, ModelConfig, ModelKind
from trainer.config.optim import Offload
from trainer.config.schema import RunConfig
from trainer.config.snapshot import as_begun, with_fitted
from trainer.config.tune import ALL_LINEAR, TuneMethod
from trainer.engine.batch import batch_shape
from trainer.engine.ds_config import deepspeed_dict
from trainer.errors import ConfigError, TrainerError
from trainer.forecast.card import find_cards
from trainer.forecast.config_json import read_config_json, shipped_shapes
from trainer.forecast.memory import ERROR_FRAC, RunShape, Weights, forecast
from trainer.forecast.shapes import DecoderShape, decoder_shape, knows
from trainer.forecast.tuned import count_trained, needs_names, weights_of
from trainer.model.attention import is_flash_installed
from trainer.model.dtype import (
    AUTO,
    BF16_GPU,
    ELEMENT_BYTES,
    DtypeChoice,
    Hardware,
    choose_dtype,
    hardware_here,
)
from trainer.model.embedded import EMBEDDED
from trainer.model.tiny import CONTEXT, VOCAB

STAGES = (1, 2, 3)
"""What a null `zero.stage` chooses from, cheapest first: gathering a frozen base in every layer costs LoRA a third of
its speed (measured on two H200s), more than recomputing all layers does. Stage 0 saves nothing over 1 in speed."""


DTYPE_LEFT = (
    "zero.dtype=auto: the first rank takes bf16 where its GPU or processor computes in it, else float32; memory is "
    "forecast for bf16."
)


@dataclasses.dataclass(frozen=True, slots=True)
class Fitted:
    """A configuration with nothing open, and why stage and layers are what they are; None when nothing was chosen."""

    config: RunConfig
    reason: str | None
    dtype: DtypeChoice | None = None
    """What `zero.dtype=auto` became; None where it was said, or began so."""

    @property
    def left_to_first_rank(self) -> RunConfig:
        """Return the configuration with a dtype that was only taken for granted open again."""
        zero, layers = self.config.zero, self.config.model.checkpoint_layers
        return self.config if self.dtype is None else with_fitted(self.config, zero.stage, layers, AUTO)

    @property
    def sentence(self) -> str:
        """Return what was chosen and why."""
        layers = {-1: "all layers", 0: "no layer", 1: "1 layer"}
        count = self.config.model.checkpoint_layers or 0
        shown = layers.get(count, f"{count} layers")
        return f"ZeRO-{self.config.zero.stage}, {shown} recomputed: {self.reason}"


def fitted(
    config: RunConfig,
    num_ranks: int,
    can_load: bool,
    here_gib: float | None = None,
    is_here: bool = False,
    hardware: Hardware = BF16_GPU,
    is_known: bool = True,
) -> Fitted:
    """Fill in `zero.dtype` where it is auto, and `zero.stage` and `model.checkpoint_layers` where they are null.

    The dtype is that of the hardware; stage and layers are the cheapest pair that fits with the margin of a forecast. A
    run that has begun keeps what it was frozen with. Pure but for a look at config.json and the run directory.

    Args:
        config: Checked.
        can_load: torch may be loaded, which counts the models that arithmetic does not know.
        here_gib: Memory of one GPU where the configuration names none.
        is_here: The GPUs are this machine's, so that `auto` means what is installed here; elsewhere it means flash
            attention and Liger.
        hardware: What the ranks compute on.
        is_known: The model can be looked at here.
    Raises:
        TrainerError: The model's config.json cannot be used.
    """
    was_open = None in (config.zero.stage, config.model.checkpoint_layers)
    config = as_begun(config, Path(config.run_dir))
    choice = choose_dtype(hardware) if config.zero.dtype == AUTO else None
    if choice is not None:
        config = with_fitted(config, config.zero.stage, config.model.checkpoint_layers, choice.name)
    if config.zero.stage is not None and config.model.checkpoint_layers is not None:
        return Fitted(config, "as the run began." if was_open else None, choice)
    gpu_gib = config.gpu_gib or here_gib
    shape = (
        None
        if gpu_gib is None or not is_known
        else (find_shape(config.model)[0] if can_load else known_shape(config))
    )
    if gpu_gib is None or shape is None:
        missing = "no GPU's memory" if gpu_gib is None else "the model's shape"
        most = -1 if _recomputes(config, can_load and is_known) else 0
        chosen = with_fitted(config, *_pairs(config, (most,))[0], config.zero.dtype)
        return Fitted(chosen, f"{missing} is known here.", choice)
    counts = (*range(shape.num_layers), -1) if _recomputes(config, can_load) else (0,)
    chosen, reason = _chosen(config, shape, num_ranks, gpu_gib, is_here, counts)
    return Fitted(chosen, reason, choice)


def _recomputes(config: RunConfig, can_load: bool) -> bool:
    """Tell whether transformers recomputes layers of the model; what cannot be asked here is taken for one of those."""
    if not can_load or config.model.checkpoint_layers is not None:
        return True
    try:
        if knows(config_json(config.model)[0]):
            return True
    except TrainerError:  # told by who reads it for more than this
        return True
    from trainer.model.remat import recomputes

    return recomputes(config.model)


def _chosen(
    config: RunConfig,
    shape: DecoderShape,
    num_ranks: int,
    gpu_gib: float,
    is_here: bool,
    layer_counts: Sequence[int],
) -> tuple[RunConfig, str | None]:
    """Return the cheapest pair that leaves what a forecast may be off by, else the one that leaves most; and why."""
    weights, problems = tuned_weights(config, shape), set(find_problems(config, num_ranks))
    reserve_gib, margin_gib = config.plan.reserve_gib, ERROR_FRAC * gpu_gib
    chosen, most_gib = config, -math.inf
    for stage, layers in _pairs(config, layer_counts):
        candidate = with_fitted(config, stage, layers, config.zero.dtype)
        # Some methods refuse a stage.
        if set(find_problems(candidate, num_ranks)) - problems:
            continue
        run = run_shape(candidate, num_ranks)
        peak_gib = forecast(shape, _as_installed(config.model, run) if is_here else run, weights).gib
        spare_gib = gpu_gib - reserve_gib - peak_gib
        if spare_gib >= most_gib:
            chosen, most_gib = candidate, spare_gib
        if spare_gib >= margin_gib:
            break
    if most_gib == -math.inf:
        return config, None
    said = (
        f"a peak of {gpu_gib - reserve_gib - most_gib:.1f} GiB is forecast of {gpu_gib:.0f}, with {reserve_gib:g} kept "
        "in reserve"
    )
    if most_gib < 0:
        return chosen, f"and even so {said}. See palimpsest plan."
    tight = f" and only {most_gib:.1f} to spare, less than the {100 * ERROR_FRAC:g} % that a forecast may be off by"
    return chosen, f"{said}{tight if most_gib < margin_gib else ''}."


def fitted_here(
    config: RunConfig, num_ranks: int, says: bool = True, are_ranks_here: bool = True
) -> RunConfig:
    """Return the configuration fitted to this machine; print what was chosen.

    Args:
        are_ranks_here: Where they run elsewhere, their first one chooses the dtype.
    """
    here_gib = None
    if config.gpu_gib is None and os.environ.get("DS_ACCELERATOR") != "cpu":
        here_gib = find_cards().gib
    hardware = hardware_here() if are_ranks_here else BF16_GPU
    fit = fitted(config, num_ranks, can_load=True, here_gib=here_gib, is_here=True, hardware=hardware)
    if says:
        for line in _said(fit, hardware, are_ranks_here):
            print(line, flush=True)
    return fit.config if are_ranks_here else fit.left_to_first_rank


def _said(fit: Fitted, hardware: Hardware, are_ranks_here: bool) -> Iterator[str]:
    """Yield what was chosen, and that what was asked for is slow."""
    best = choose_dtype(hardware)
    if fit.dtype is not None:
        yield fit.dtype.sentence if are_ranks_here else DTYPE_LEFT
    elif fit.config.zero.dtype == "bf16" and best.name != "bf16" and not hardware.is_hidden:
        yield f"Training in bf16 although {best.reason}: several times slower than in float32 (zero.dtype=fp32)."
    if fit.reason is not None:
        yield fit.sentence


def known_shape(config: RunConfig) -> DecoderShape | None:
    """Return the model's counts; None where only torch can count the model or what trains of it."""
    found, origin = config_json(config.model)
    return decoder_shape(found, origin) if knows(found) and not needs_names(config.tune) else None


def _pairs(
    config: RunConfig, layer_counts: Sequence[int], stages: Sequence[int] = STAGES
) -> list[tuple[int, int]]:
    """Return what may be chosen, cheapest first: stages that shard no parameters, then fewer recomputed layers."""
    stages = stages if config.zero.stage is None else (config.zero.stage,)
    asked = config.model.checkpoint_layers
    counts = layer_counts if asked is None else (asked,)
    found = [(stage == 3, number, stage, count) for stage in stages for number, count in enumerate(counts)]
    return [(stage, count) for _, _, stage, count in sorted(found)]


def _as_installed(model: ModelConfig, run: RunShape) -> RunShape:
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
        return decoder_shape(config, origin), origin
    from trainer.model.meta import meta_shape

    local = Path(model.path).expanduser()
    source = str(local) if local.exists() else model.path
    return meta_shape(config, source, model), f"{origin}, built on the meta device"


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
    batch = batch_shape(train.global_batch_tokens, seq_len, train.micro_batch_size, num_ranks, is_movable)
    deepspeed_dict(zero, config.optim, batch, on_gpu=True)
    return RunShape(
        stage=zero.stage,
        world_size=num_ranks,
        micro_batch_size=batch.micro_batch_size,
        seq_len=batch.seq_len,
        num_micro_steps=batch.num_micro_steps,
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
    )
