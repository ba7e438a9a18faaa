"""The page of a run: head with the verdict, then the sections."""

from __future__ import annotations

from datetime import UTC, datetime

from trainer.evaluate.compare import SAME_NATS
from trainer.report.answers import answers
from trainer.report.coloured import coloured
from trainer.report.document import document
from trainer.report.element import Html, element
from trainer.report.held_out import changes, curves, divergence, recovery
from trainer.report.interpolation import interpolation
from trainer.report.layers_figure import layers
from trainer.report.lost_when import lost_when
from trainer.report.number import count, fixed
from trainer.report.origin import origin
from trainer.report.outcome import MARGIN_NATS, MARGIN_POINTS, OutcomeItem, RunOutcome, outcome
from trainer.report.preferences import preferences
from trainer.report.record import RunRecord
from trainer.report.replay import replay
from trainer.report.section import definitions, paragraph
from trainer.report.tasks import tasks
from trainer.report.training import training
from trainer.report.verdict import listed

RANGE = (
    "A range says how far chance in the choice of documents or pairs reaches (95 %: one of twenty misses)."
)
UNIT = (
    "Loss says how surprised the model is by text that it was not trained on, in nats: with 0.1 nats lost, the right "
    "next word (strictly the next token: a word or a piece of one) is about 10 % less likely. "
    f"{RANGE}"
)
RULE = (
    f"Lost or gained: the range leaves out 0 and is not all within {SAME_NATS:g}. Kept: it leaves out a loss of more "
    f"than {MARGIN_NATS:g} nats. Not known: it does neither. Of scores and rankings {100 * MARGIN_POINTS:g} points "
    f"(where they are no shares {100 * MARGIN_POINTS:g} % of the base's) stand for {MARGIN_NATS:g} nats."
)


def build_page(record: RunRecord) -> str:
    """Return the whole page."""
    folder = record.run_dir.absolute().name
    title = f"Run report: {record.name}{f' ({folder})' if folder != record.name else ''}"
    return document(
        title,
        _head(record, title),
        changes(record),
        coloured(record),
        tasks(record),
        answers(record),
        curves(record),
        lost_when(record),
        preferences(record),
        replay(record),
        training(record),
        interpolation(record),
        layers(record),
        divergence(record),
        recovery(record),
        origin(record),
    )


def _head(record: RunRecord, title: str) -> Html:
    found = outcome(record)
    return element(
        "header",
        element("h1", title),
        paragraph(_through_training(record) if found.is_empty else found.verdict, class_="verdict"),
        None if found.is_empty else paragraph(UNIT if found.has_words else RANGE),
        *([] if found.is_empty else _lists(found)),
        None if found.is_empty else paragraph(RULE, class_="note"),
        *(paragraph(text) for text in found.moved),
        _unmeasured(found),
        definitions(_facts(record)),
    )


def _lists(found: RunOutcome) -> list[Html | None]:
    """Return the lists that hold something side by side, and a sentence of those that do not."""
    lists = {"Kept": found.kept, "Lost": found.lost, "Gained": found.gained, "Not known": found.unknown}
    filled = [_list(title, findings) for title, findings in lists.items() if findings]
    empty = [
        title if index == 0 else title.lower() for index, title in enumerate(t for t in lists if not lists[t])
    ]
    return [
        element("div", *filled, class_="outcome four" if len(filled) == len(lists) else "outcome"),
        paragraph(f"{listed(empty)}: nothing that was measured.") if empty else None,
    ]


def _list(title: str, findings: list[OutcomeItem]) -> Html:
    items = [element("li", element("b", one.name), ": ", one.words) for one in findings]
    return element("div", element("h2", title), element("ul", *items), class_=title.lower().replace(" ", "-"))


def _unmeasured(found: RunOutcome) -> Html | None:
    if not found.unmeasured:
        return None
    items = [element("li", text) for text in found.unmeasured]
    return element("div", element("b", "Not measured"), element("ul", *items), class_="missing")


def _through_training(record: RunRecord) -> str:
    """Return what the training log alone can say."""
    parts = []
    for name in record.metrics.names("eval/"):
        points = record.metrics.series(f"eval/{name}").points
        if len(points) > 1:
            (start, first), (end, last) = points[0], points[-1]
            parts.append(
                f"{name} went from {fixed(first, 3)} to {fixed(last, 3)} nats (steps {start:.0f} to {end:.0f})"
            )
    if record.forgetting is not None:
        return "No held-out set was measured."
    if not parts:
        often = (
            "no held-out loss was logged"
            if not record.metrics.names("eval/")
            else "held-out loss was logged once"
        )
        return f"Forgetting was not measured, and {often}."
    return f"Held-out loss of {listed(parts)}; without forgetting.json there is no interval."


def _facts(record: RunRecord) -> dict[str, str]:
    run = record.forgetting.run if record.forgetting is not None else None
    steps = max((row["step"] for row in record.metrics.rows), default=None)
    tokens = record.metrics.last("tokens_seen")
    if run is not None:
        steps, tokens = run.steps, run.tokens_seen
    times = [row["time"] for row in record.metrics.rows if isinstance(row.get("time"), int | float)]
    return {
        "Run directory": str(record.run_dir),
        "Base model": run.base if run is not None else str(record.provenance.get("model") or ""),
        "Compared checkpoint": run.tuned if run is not None else "",
        "Steps": "" if steps is None else count(steps),
        "Tokens seen": "" if tokens is None else _tokens(record, int(tokens)),
        "Device": str(record.provenance.get("device") or (run.device if run is not None else "")),
        "Last logged": f"{datetime.fromtimestamp(times[-1], UTC):%Y-%m-%d %H:%M} UTC" if times else "",
    }


def _tokens(record: RunRecord, tokens: int) -> str:
    """Return the tokens of all packs and, by the ledger, how many of them are of the data and how many are learnt."""
    saved = [one for one in record.events if one.get("event") == "saved" and one.get("tokens_seen") == tokens]
    of_data, learnt = (
        sum((saved[-1].get(key) or {}).values()) if saved else 0
        for key in ("tokens_by_source", "targets_by_source")
    )
    if not of_data:
        return count(tokens)
    return f"{count(tokens)}, padding included; {count(of_data)} of the data, of which {count(learnt)} are learnt"
