"""The figure of `palimpsest plan`: LoRA over its ranks, and tokens a second over GPUs where time is forecast."""

from __future__ import annotations

from pathlib import Path

from trainer.command.plan_time import Timing
from trainer.config.snapshot import write_atomic
from trainer.errors import ConfigError
from trainer.forecast.adapter_sizes import AdapterSize
from trainer.forecast.memory import Peak
from trainer.forecast.shapes import DecoderShape
from trainer.report.plan import Chart, plan_svg
from trainer.report.series import Series

PLATE = b'class="plate"'
"""Is in every figure."""
MEASURED_GPUS = 2
"""GPUs up to which steps were measured; what is beyond is worked out."""


def write_figure(
    path: str,
    shape: DecoderShape,
    lora: list[AdapterSize],
    full: dict[int, Peak],
    stage: int,
    timing: Timing | None,
) -> None:
    """Write the SVG whole or not at all.

    Raises:
        ConfigError: The file cannot be written, or holds something else than such a figure.
    """
    output = Path(path).expanduser().absolute()
    millions = Series("trainable", tuple((float(row.r), row.num_params / 1e6) for row in lora))
    memory = [
        Series(f"LoRA, ZeRO-{stage}", tuple((float(row.r), row.peak_gib) for row in lora)),
        Series("LoRA, ZeRO-3", tuple((float(row.r), row.peak_stage3_gib) for row in lora)),
        Series("QLoRA", tuple((float(row.r), row.peak_nf4_gib) for row in lora)),
    ]
    charts = [
        Chart(f"Trainable parameters of {shape.num_params:,}", "millions", [millions]),
        Chart("Peak memory of one GPU", "GiB", memory, ("full, ZeRO-3", full[3].gib)),
    ]
    if timing is not None:
        charts.append(_scaling(timing))
    try:
        _refuse_foreign(output)
        write_atomic(output, plan_svg(charts))
    except OSError as error:
        raise ConfigError(
            f"`plan.output` must be a file you can write, but {output} is not: {error.strerror}. Set plan.output."
        ) from error


def _refuse_foreign(file: Path) -> None:
    """Raise for a file that is there and no figure of ours, and for a folder that is not there."""
    if not file.parent.exists():
        raise ConfigError(
            f"`plan.output` must be in a folder that is there, but {file.parent} is not. Make it, or set plan.output."
        )
    content = file.read_bytes() if file.exists() else b""
    if content and not (content.startswith(b"<svg") and PLATE in content):
        raise ConfigError(
            f"`plan.output` must be a new file or an earlier figure, but {file} holds something else instead. Set "
            "plan.output=plan.svg."
        )


def _scaling(timing: Timing) -> Chart:
    """Return tokens a second over GPUs, beside as many times those of one node."""
    times = [timing.by_nodes[number] for number in sorted(timing.by_nodes)]
    rate = times[0].tokens_per_s_per_gpu
    lines = [
        Series(
            "forecast",
            tuple((float(one.num_ranks), one.tokens_per_s_per_gpu * one.num_ranks / 1e3) for one in times),
        ),
        Series("as one node", tuple((float(one.num_ranks), rate * one.num_ranks / 1e3) for one in times)),
    ]
    title = f"Tokens a second on {timing.device.name}, forecast from {MEASURED_GPUS} GPUs"
    return Chart(title, "thousand tok/s", lines, x_unit="GPUs")
