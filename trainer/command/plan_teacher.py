"""What `palimpsest plan` says of a distillation: what the teacher's words take on a disk, and what asking it takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from trainer.command.counted import find_shape
from trainer.command.plan_rounds import round_notes
from trainer.command.plan_time import Timing, num_steps_of, run_time
from trainer.config.distill import CachePrecision
from trainer.config.objective import ObjectiveKind
from trainer.config.schema import RunConfig
from trainer.config.teacher import teacher_model
from trainer.errors import TrainerError
from trainer.forecast.memory import GIB, RunShape, Weights, full_weights
from trainer.forecast.shapes import DecoderShape
from trainer.metrics.console import duration_text

ID_BYTES = 4
LOG_PROB_BYTES = {CachePrecision.fp16: 2, CachePrecision.fp32: 4}
TRAINED, TRAINED_FROZEN = 6, 4
"""FLOPs of a parameter and token in a step, all of it trained or a base beside an adapter; a forward pass takes 2."""


def teacher_notes(
    config: RunConfig, shape: DecoderShape, run: RunShape, weights: Weights, timing: Timing | None
) -> Iterator[str]:
    """Yield notes on a teacher; none where there is none.

    Args:
        timing: Of a step; None where it is not forecast.
    """
    options = config.objective.distill
    if config.objective.kind is not ObjectiveKind.distill or not options.teacher:
        return
    try:
        teacher, origin = find_shape(teacher_model(options, config.model))
    except TrainerError as error:
        yield f"The teacher cannot be counted: {error}"
        return
    work = 2 * teacher.num_active / ((TRAINED if weights.is_full else TRAINED_FROZEN) * shape.num_active)
    is_sharded = run.stage == 3 if options.shard_teacher is None else options.shard_teacher
    size = teacher.num_params * run.element_bytes / (run.world_size if is_sharded else 1)
    seconds = None if timing is None else _asked_s(config, teacher, run, timing)
    takes = "" if seconds is None else f", about {seconds:.2f} s for as many tokens as a step has"
    yield (
        f"The teacher is {origin}, {teacher.num_params:,} parameters. Asking it takes {work:.2g} times the work of "
        f"training on the same tokens{takes}, and {size / GIB:.2f} GiB of a GPU for its weights "
        f"({'spread over all ranks' if is_sharded else 'whole on each'}) beside the student, which the peak above "
        "leaves out."
    )
    if options.cached:
        yield _of_cache(config, seconds)
        return
    if options.on_policy.is_on:
        device = None if timing is None else timing.device
        yield from round_notes(config, shape, run, device)
        return
    yield (
        "objective.distill.cached=false asks it in every step, which the time of a step leaves out. Cached, each pack "
        f"is asked about once, for {token_bytes(config)} bytes a supervised token on disk: less work wherever packs "
        "are drawn more than once, or by several runs."
    )


def token_bytes(config: RunConfig) -> int:
    """Return what is kept of a supervised token: ids and log-probabilities, and that of the rest."""
    options = config.objective.distill
    each = LOG_PROB_BYTES[options.precision]
    return options.top * (ID_BYTES + each) + each


def _of_cache(config: RunConfig, seconds: float | None) -> str:
    """Return what the cache takes, as far as it is known."""
    each = token_bytes(config)
    said = (
        f"What the teacher says is kept in data.cache_dir before the first step: {each} bytes a supervised token of "
        "what is distilled"
    )
    num_steps = num_steps_of(config)
    if num_steps is None:
        return f"{said}, {each / 1000:g} GB for each million. Each pack is asked about once, whatever the epochs."
    most = num_steps * config.train.global_batch_tokens
    long = "" if seconds is None else f", in {duration_text(num_steps * seconds)}"
    return (
        f"{said}, at most {each * most / 1e9:.3g} GB for the {most:,} tokens of {num_steps:,} steps{long}; packs that "
        "are drawn again are asked about once."
    )


def _asked_s(config: RunConfig, teacher: DecoderShape, run: RunShape, timing: Timing) -> float:
    """Return the seconds of a forward pass of the teacher over the tokens of a step: a third of training it whole."""
    plain = dataclasses.replace(run, checkpoint_layers=0)
    own = run_time(config, teacher, plain, full_weights(teacher), timing.device)
    return (own.matmuls + own.attention + own.memory) / 3
