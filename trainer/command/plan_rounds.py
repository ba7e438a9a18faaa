"""What `palimpsest plan` says of rounds: what the student samples, and what that takes at least."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.many import many
from trainer.config.schema import RunConfig
from trainer.forecast.memory import GIB, RunShape
from trainer.forecast.shapes import DecoderShape
from trainer.forecast.step_time import Device

TOKEN_BYTES = 6
"""Of a sampled token in rounds/, as JSON: five digits of an id and what separates them."""


def round_notes(
    config: RunConfig, shape: DecoderShape, run: RunShape, device: Device | None
) -> Iterator[str]:
    """Yield notes on the rounds of a run that samples.

    Args:
        device: Whose memory reads the weights once a token; None where no time is forecast.
    """
    options = config.objective.distill.on_policy
    cache = 2 * shape.num_layers * shape.kv_dim * run.element_bytes * config.data.seq_len * options.batch_size
    yield (
        f"A round: {options.told}, each in at most {options.max_new_tokens:,} tokens, "
        f"{options.batch_size} at once on each of {many(run.world_size, 'rank')}, beside at most "
        f"{cache / GIB:.2f} GiB of keys and values, which the peak above leaves out. A step has as many packs as its "
        "documents take with their new answers, so train.global_batch_tokens is what they take with those of the data. "
        "The teacher is asked about every pack of a step once, as the work above says."
    )
    if run.stage == 3 and run.world_size > 1:
        yield (
            "At ZeRO-3 every sampled token gathers all weights from all ranks: zero.stage=2 samples without, where the "
            "student fits."
        )
    elif device is not None:
        seconds = options.max_new_tokens * shape.num_active * run.element_bytes / device.hbm_bytes_s
        yield (
            f"Sampling {options.batch_size} answers of {options.max_new_tokens:,} tokens takes over {seconds:.2f} s, "
            "in which the weights are read once a token; more at once (batch_size) share that. It is plain PyTorch, a "
            "token at a time, and takes longer than that, which was not measured: sampling_share is logged."
        )
    yield (
        f"Answers are kept in rounds/ of the run directory, about {TOKEN_BYTES} bytes a sampled token, before anything "
        "is learnt from them."
    )
