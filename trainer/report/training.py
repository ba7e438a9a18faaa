"""Training: loss, learning rate, speed and memory over steps, and what happened on the way."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.report.element import Html
from trainer.report.figure import line_chart
from trainer.report.number import count
from trainer.report.preferences import PARTS, UNIT, loss_of
from trainer.report.record import RunRecord
from trainer.report.section import figures, missing, paragraph, section
from trainer.report.series import Series

STEP = "optimizer step"
MAX_SOURCES = 5
"""In one figure: with all sources together as many lines as there are colours."""


def training(record: RunRecord) -> Html:
    """Return the learning curve and the run's speed and memory."""
    metrics = record.metrics
    speed, mfu = metrics.series("tokens_per_s", "all ranks"), metrics.series("mfu", "MFU").scaled(100)
    shares = [
        metrics.series(f"experts_{which}_share", f"{which} expert").scaled(100)
        for which in ("busiest", "idlest")
    ]
    drawn = [
        _loss_chart(record),
        _chart("Learning rate", "learning rate", [metrics.series("lr", "learning rate")], from_zero=True),
        _chart("Gradient norm", "L2 norm before clipping", [metrics.series("grad_norm", "gradient norm")]),
        _chart("Throughput", "tokens per second", [speed], from_zero=True),
        _chart("Model FLOPs utilisation", "% of peak", [mfu], from_zero=True),
        _chart("Memory of a rank", "GiB, peak", [metrics.series("memory_gib", "memory")], from_zero=True),
        _chart("Use of experts", "% of a layer's tokens, mean over layers", shares, from_zero=True),
    ]
    drawn += _answer_charts(record)
    shown = [one for one in drawn if one is not None]
    events = _events_in_words(record)
    if not shown:
        text = "metrics.jsonl has no training step. It is written while training:"
        return section("training", "Training", events, missing(text, "palimpsest train ..."))
    return section("training", "Training", events, figures(*shown))


def _answer_charts(record: RunRecord) -> list[Html | None]:
    """Return what the model answered in rounds, and what that took of the time; nothing where it answered nothing."""
    metrics = record.metrics
    shares = [
        metrics.series("answers_ended", "answers that ended by themselves").scaled(100),
        metrics.series("sampling_share", "time spent sampling").scaled(100),
    ]
    lengths = [metrics.series("answer_tokens", "mean answer")]
    return [
        _chart("Length of sampled answers", "tokens", lengths, from_zero=True),
        _chart("Sampled answers", "% of answers, and of the time", shares, from_zero=True),
    ]


def _loss_chart(record: RunRecord) -> Html | None:
    """Return the loss, its parts where there are several, and the loss of each source."""
    metrics, options = record.metrics, loss_of(record)
    names = metrics.names("loss/")
    parts: list[Series] = []
    if record.setting("objective.kind") == "reward":
        losses, unit = [metrics.series("loss", "what is minimised")], "loss of a pair"
    elif record.setting("objective.kind") == "distill":
        losses, unit = [metrics.series("loss", "what is minimised")], "nats per token"
        parts = [metrics.series("divergence", "divergence from the teacher")]
    elif options is None:
        losses, unit = [metrics.series("loss", "all sources")], "nats per token"
    else:
        losses, unit = [metrics.series("loss", "what is minimised")], UNIT
        parts = [part for key, label in PARTS.items() if (part := metrics.series(key, label)).points]
    most = MAX_SOURCES - len(parts)
    if len(names) + len(parts) > 1:
        losses += [*parts, *(metrics.series(f"loss/{name}", name) for name in names[:most])]
    note = f"The first {most} of {len(names)} sources." if len(names) > most else ""
    return _chart("Training loss", unit, losses, note=note)


def _chart(
    title: str, unit: str, lines: list[Series], from_zero: bool = False, note: str = ""
) -> Html | None:
    if not any(line.points for line in lines):
        return None
    return line_chart(title, STEP, unit, lines, from_zero=from_zero, note=note)


def _events_in_words(record: RunRecord) -> Html | None:
    """Say what ledger.jsonl holds: attempts, checkpoints, skipped steps, the end."""
    if not record.events:
        return missing("There is no ledger.jsonl, so attempts, checkpoints and skipped steps are unknown.")
    counts = Counter(str(event.get("event")) for event in record.events)
    parts = [
        _counted(counts["started"], "attempt"),
        _counted(counts["saved"], "checkpoint") + " saved",
        _counted(counts["skipped"], "step") + " skipped for numbers that were not finite",
    ]
    if counts["sampled"]:
        parts.append(_counted(counts["sampled"], "round") + " of answers sampled")
    parts += _moves([event for event in record.events if event.get("event") == "started"])
    stopped = [event for event in record.events if event.get("event") == "stopped"]
    end = f"The last attempt ended: {stopped[-1].get('reason')}." if stopped else "No end was recorded."
    return paragraph("; ".join(parts) + ". " + end)


def _moves(starts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say where an attempt went on with another number of ranks than the one before."""
    return [
        f"after step {now.get('step')} with {_counted(now['world_size'], 'rank')} instead of {before['world_size']}"
        for before, now in itertools.pairwise(starts)
        if "world_size" in before and "world_size" in now and before["world_size"] != now["world_size"]
    ]


def _counted(number: int, noun: str) -> str:
    return f"{count(number) if number else 'no'} {noun}{'' if number == 1 else 's'}"
