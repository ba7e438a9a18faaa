"""What hardware decides of a configuration that leaves it open: stage, recomputed layers and dtype."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from trainer.command.cheapest import cheapest_first, chosen_pair, forecast_pairs
from trainer.command.counted import config_json, find_shape, known_shape
from trainer.config.schema import RunConfig
from trainer.config.snapshot import as_begun, with_fitted
from trainer.errors import TrainerError
from trainer.forecast.card import Cards, find_cards
from trainer.forecast.shapes import knows
from trainer.model.dtype import (
    AUTO,
    BF16_GPU,
    DtypeChoice,
    Hardware,
    choose_dtype,
    hardware_here,
)

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
    gpu_name: str | None = None,
) -> Fitted:
    """Fill in `zero.dtype` where it is auto, and `zero.stage` and `model.checkpoint_layers` where they are null.

    The dtype is that of the hardware; stage and layers are those of `chosen_pair`. A run that has begun keeps what it
    was frozen with. Pure but for a look at config.json and the run directory.

    Args:
        config: Checked.
        can_load: torch may be loaded, which counts the models that arithmetic does not know.
        here_gib: Memory of one GPU where the configuration names none.
        is_here: The GPUs are this machine's, so that `auto` means what is installed here; elsewhere it means flash
            attention and Liger.
        hardware: What the ranks compute on.
        is_known: The model can be looked at here.
        gpu_name: Kind of GPU where the configuration names none.
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
        chosen = with_fitted(config, *cheapest_first(config, (most,))[0], config.zero.dtype)
        return Fitted(chosen, f"{missing} is known here.", choice)
    counts = (*range(shape.num_layers), -1) if _recomputes(config, can_load) else (0,)
    name = config.plan.gpu or gpu_name
    pairs = forecast_pairs(config, shape, num_ranks, gpu_gib, is_here, name, counts)
    chosen, reason = chosen_pair(config, pairs, gpu_gib)
    return Fitted(chosen, reason, choice)


def _recomputes(config: RunConfig, can_load: bool) -> bool:
    """Tell whether transformers recomputes layers of the model; what cannot be asked here is taken for one of those."""
    if not can_load or config.model.checkpoint_layers is not None:
        return True
    try:
        found = config_json(config.model)[0]
        if knows(found):
            return True
    except TrainerError:  # told by who reads it for more than this
        return True
    from trainer.model.remat import recomputes

    return recomputes(found, config.model)


def fitted_here(
    config: RunConfig, num_ranks: int, says: bool = True, are_ranks_here: bool = True
) -> RunConfig:
    """Return the configuration fitted to this machine; print what was chosen.

    Args:
        are_ranks_here: Where they run elsewhere, their first one chooses the dtype.
    """
    cards = Cards(0, None)
    if os.environ.get("DS_ACCELERATOR") != "cpu":
        cards = find_cards()
    hardware = hardware_here() if are_ranks_here else BF16_GPU
    fit = fitted(
        config,
        num_ranks,
        can_load=True,
        here_gib=cards.gib,
        is_here=True,
        hardware=hardware,
        gpu_name=cards.name,
    )
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
