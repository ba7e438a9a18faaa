"""Replay: what was asked, what was reached, and what every source gave."""

from __future__ import annotations

from trainer.config.many import many
from trainer.config.replay import RatioController
from trainer.evaluate.record import Replay, ReplaySource
from trainer.mix.ratio import UNLIKE
from trainer.report.element import Child, Html, table
from trainer.report.figure import line_chart
from trainer.report.number import count, percent
from trainer.report.record import RunRecord
from trainer.report.section import figures, missing, paragraph, section


def replay(record: RunRecord) -> Html:
    """Return the ratio over tokens and the ledger of sources."""
    found = record.forgetting.replay if record.forgetting is not None else None
    drawn = _ratio_figure(record)
    if found is None and drawn is None:
        text = (
            "No replay was recorded: nothing in the run directory says that text like the base model's own "
            "was mixed in. A run with a source of role replay shows its ratio here."
        )
        return section("replay", "Replay", missing(text))
    body: list[Html | None] = [figures(drawn) if drawn is not None else None]
    if found is None:
        body.append(missing("The sources are listed once forgetting.json is there."))
    else:
        body = [paragraph(_in_words(found)), *body, _sources(found)]
    if chosen := _chosen_in_words(record):
        body += [paragraph(chosen), _rise_figure(record)]
    return section("replay", "Replay", *body)


def _ratio_figure(record: RunRecord) -> Html | None:
    asked = record.metrics.series("replay_ratio", "asked", x="tokens_seen").scaled(100)
    reached = record.metrics.series("replay_share", "reached", x="tokens_seen").scaled(100)
    if not (asked.points or reached.points):
        return None
    note = "Asked at that step, and the share of all supervised tokens so far."
    return line_chart(
        "Replay ratio", "tokens seen", "% of supervised tokens", [asked, reached], from_zero=True, note=note
    )


def _in_words(found: Replay) -> str:
    unlike = ""
    if (
        found.controller == RatioController.none.value
        and abs(found.ratio_asked - found.ratio_reached) >= UNLIKE
    ):
        unlike = " Packs are drawn whole, so a run of few packs may end far from what was asked."
    return (
        f"Asked for {percent(found.ratio_asked)} replay and reached {percent(found.ratio_reached)} "
        f"(schedule {found.schedule}, controller {found.controller}).{unlike}"
    )


def _chosen_in_words(record: RunRecord) -> str:
    """Say how often packs were chosen by what was lost on them, and of the last time by how much; empty without."""
    chosen = [event for event in record.events if event.get("event") == "chose"]
    if not chosen:
        return ""
    last = chosen[-1]
    num_times = len({event.get("step") for event in chosen})
    return (
        f"Replay packs were chosen {many(num_times, 'time')} by what the model was losing. At step {last['step']}, "
        f"{min(last['num_wanted'], last['num_candidates'])} of {many(last['num_candidates'], 'pack')} of "
        f"{last['pool']} were chosen: their loss was {last['rise_chosen']:+.4f} nats a token from the base's, and "
        f"{last['rise_candidates']:+.4f} on all that were scored."
    )


def _rise_figure(record: RunRecord) -> Html | None:
    lines = [
        record.metrics.series(f"{key}/{name}", f"{name}, {word}")
        for key, word in (("replay_rise_chosen", "chosen"), ("replay_rise", "all scored"))
        for name in record.metrics.names(f"{key}/")
    ]
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    return line_chart(
        "Loss on replay over the base", "optimizer step", "nats per token", lines, ("base", 0.0)
    )


def _sources(found: Replay) -> Html:
    header = [
        "Source",
        "Role",
        "Tokens",
        "Supervised tokens",
        "Share of supervised",
        "Passes",
        "Passes at most",
    ]
    total = sum(source.targets for source in found.sources)
    rows = [_source_row(source, total) for source in found.sources]
    return table(header, rows, "What every source gave to the run", 2)


def _source_row(source: ReplaySource, total: int) -> list[Child]:
    return [
        source.name,
        source.role,
        count(source.tokens),
        count(source.targets),
        percent(source.targets / total) if total else "\u2013",
        f"{source.epochs:.2f}",
        "no limit" if source.max_epochs is None else f"{source.max_epochs:.2f}",
    ]
