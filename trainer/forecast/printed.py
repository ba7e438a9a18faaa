"""What `palimpsest plan` prints: counts, memory by ZeRO stage, the verdict, LoRA over r."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from trainer.forecast.adapter_sizes import AdapterSize, checkpoint_bytes
from trainer.forecast.advice import Advice
from trainer.forecast.card import gib_text
from trainer.forecast.memory import ERROR_FRAC, GIB, Peak, RunShape, attention_of
from trainer.forecast.shapes import DecoderShape
from trainer.forecast.step_time import StepTime

_ROWS = {
    "parameters": "parameters",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "buffers": "gathered parameters, buckets",
    "activations": "activations",
    "head": "loss head",
}


def parameter_table(shape: DecoderShape) -> Table:
    """Return the parameters by kind."""
    table = _table(["", "parameters", "share"])
    kinds = {
        "embeddings": shape.embeddings,
        "attention": shape.attention,
        "MLP": shape.mlp,
        "  of them experts": shape.experts,
        "norms": shape.norms,
        "head": shape.head,
    }
    for name, number in kinds.items():
        if number:
            table.add_row(name, f"{number:,}", f"{100 * number / shape.num_params:.1f} %")
    if shape.is_tied:
        table.add_row("head", "tied", "")
    table.add_row("total", f"{shape.num_params:,}", "", style="bold")
    if shape.idle:
        share = 100 * shape.num_active / shape.num_params
        table.add_row("  of them active for a token", f"{shape.num_active:,}", f"{share:.1f} %")
    return table


def memory_table(peaks: Mapping[int, Peak], run: RunShape, reserve_gib: float, gpu_gib: float) -> Table:
    """Return the parts of every stage's peak in GiB, and what is left; refused stages are not in `peaks`."""
    stages = sorted(peaks)
    heads = [f"ZeRO-{stage}{' (yours)' if stage == run.stage else ''}" for stage in stages]
    table = _table(["", *heads])
    for key, name in _ROWS.items():
        table.add_row(name, *(f"{getattr(peaks[stage].parts, key) / GIB:.1f}" for stage in stages))
    table.add_row("peak", *(f"{peaks[stage].gib:.1f}" for stage in stages), style="bold")
    table.add_row("  at", *(peaks[stage].moment for stage in stages))
    table.add_row("context, fragmentation", *(f"{reserve_gib:.1f}" for _ in stages))
    spare = [gpu_gib - reserve_gib - peaks[stage].gib for stage in stages]
    table.add_row(f"to spare of {gib_text(gpu_gib)}", *map(_spare, spare))
    return table


def run_sentence(shape: DecoderShape, run: RunShape) -> str:
    """Return what the memory table was worked out for."""
    asked = run.checkpoint_layers
    count = shape.num_layers if asked < 0 else min(asked, shape.num_layers)
    dtype = "bf16" if run.element_bytes == 2 else "float32"
    sharing = "a rank" if run.sequence_parallel == 1 else f"of {run.sequence_parallel} ranks that share them"
    return (
        f"{_plural(run.world_size, 'rank')}, {run.micro_batch_size} x {run.seq_len:,} tokens {sharing}, "
        f"{_plural(run.num_micro_steps, 'micro-step')} in {dtype}, {count} of {shape.num_layers} layers recomputed, "
        f"{attention_of(shape, run)}, {'Liger' if run.is_fused else 'no fused'} kernels."
    )


@dataclass(frozen=True, slots=True)
class Gpu:
    """What a forecast is compared with, in GiB."""

    gib: float
    reserve_gib: float
    is_assumed: bool = False
    """Nobody said what GPU it is, and there is none here."""

    @property
    def free_gib(self) -> float:
        """Return what tensors can have."""
        return self.gib - self.reserve_gib

    @property
    def margin_gib(self) -> float:
        """Return what the forecast may be off by."""
        return ERROR_FRAC * self.gib

    def spare_gib(self, peak: Peak) -> float:
        """Return what is left beside a peak; negative where it does not fit."""
        return self.free_gib - peak.gib

    def __str__(self) -> str:
        """Name it."""
        assumed = " (assumed, since no GPU is known: set plan.gpu_gib)" if self.is_assumed else ""
        return f"a GPU of {gib_text(self.gib)} GiB{assumed}"


@dataclass(frozen=True, slots=True)
class Way:
    """Words that make a run fit, the peak with them, and what they cost."""

    words: tuple[str, ...]
    peak: Peak
    note: str


def verdict(peak: Peak, gpu: Gpu, advice: Advice | None, ways: Sequence[Way] = ()) -> str:
    """Return whether the run fits, and what makes it fit, or fit with more to spare than the forecast is exact to.

    Args:
        advice: The smallest change on the same GPUs.
        ways: Where there is none, other ways, the cheapest first.
    """
    spare = gpu.spare_gib(peak)
    changed = (
        ""
        if advice is None
        else f"{' '.join(advice.overrides)} ({gpu.spare_gib(advice.peak):.1f} GiB to spare)"
    )
    if spare >= gpu.margin_gib:
        return f"Fits {gpu} with {spare:.1f} GiB to spare."
    if spare >= 0:
        more = f" Smallest change that leaves more: {changed}." if changed else ""
        more += f" What leaves more, cheapest first:{_listed(ways, gpu)}" if ways else ""
        return (
            f"Fits {gpu} with only {spare:.1f} GiB to spare: less than {100 * ERROR_FRAC:g} % of it, which the "
            f"forecast may be off by. It may end for lack of memory.{more}"
        )
    start = f"Does not fit {gpu}: {-spare:.1f} GiB too much."
    if ways:
        return f"{start} What fits, cheapest first:{_listed(ways, gpu)}"
    if not changed:
        return (
            f"{start} No ZeRO stage, recomputation, micro-batch or number of nodes up to 64 times these makes it "
            "fit: share packs between ranks (train.sequence_parallel), shorten data.seq_len, or take a smaller model."
        )
    return f"{start} Smallest change that fits: {changed}."


def _listed(ways: Sequence[Way], gpu: Gpu) -> str:
    """Return a line for each way."""
    lines = [
        f"{' '.join(way.words)}: peak {way.peak.gib:.1f} GiB, {gpu.spare_gib(way.peak):.1f} to spare"
        f"{f'; {way.note}' if way.note else ''}"
        for way in ways
    ]
    return "".join(f"\n  {line}" for line in lines)


def adapter_table(
    shape: DecoderShape, rows: Sequence[AdapterSize], full: Mapping[int, Peak], stage: int
) -> Table:
    """Return LoRA over r beside full fine-tuning; `full` holds its peaks by stage.

    Args:
        stage: At which every rank has the base whole, 0 or 1.
    """
    whole = f"ZeRO-{stage}"
    heads = ["r", "trainable", "share", "adapter", "checkpoint", whole, "ZeRO-3", f"QLoRA, {whole}"]
    table = _table(heads)
    for row in rows:
        table.add_row(
            str(row.r),
            f"{row.num_params:,}",
            f"{100 * row.share:.2f} %",
            size_text(row.adapter_bytes),
            size_text(row.checkpoint_bytes),
            *(f"{gib:.1f}" for gib in (row.peak_gib, row.peak_stage3_gib, row.peak_nf4_gib)),
        )
    table.add_row(
        "full",
        f"{shape.num_params:,}",
        "100 %",
        "",
        size_text(shape.num_params * checkpoint_bytes(rows[0].element_bytes)),
        *(f"{full[stage].gib:.1f}" for stage in (stage, 3)),
        "",
    )
    return table


def size_text(num_bytes: float) -> str:
    """Return bytes in MB or GB of 10^6 and 10^9 bytes."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def nodes_table(times: Mapping[int, StepTime], spare_gib: Mapping[int, float]) -> Table:
    """Return seconds and tokens a second over nodes, and whether a GPU has room for that; the batch grows with them."""
    table = _table(["nodes", "GPUs", "s a step", "tok/s a GPU", "tok/s", "GiB to spare"])
    for number, found in times.items():
        rate = found.tokens_per_s_per_gpu
        row = (
            f"{found.seconds:.2f}",
            f"{rate:,.0f}",
            f"{rate * found.num_ranks:,.0f}",
            _spare(spare_gib[number]),
        )
        table.add_row(str(number), str(found.num_ranks), *row)
    return table


def _spare(gib: float) -> str:
    return f"{gib:.1f}" if gib >= 0 else "does not fit"


def _table(heads: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left")
    return table
