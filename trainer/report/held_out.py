"""Held-out loss: the table and plot of changes, curves through training, KL and the recovery probe."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.config.metric import FORGETTING
from trainer.evaluate.compare import MIN_DOCUMENTS, SetComparison
from trainer.evaluate.record import Divergence, Recovery
from trainer.report.element import Child, Html, table
from trainer.report.figure import line_chart
from trainer.report.interval import interval_plot
from trainer.report.number import count, decimals_for, fixed, percent, signed
from trainer.report.record import RunRecord
from trainer.report.section import command_for, figures, missing, paragraph, section
from trainer.report.series import Series
from trainer.report.verdict import between, in_a_word, no_interval

MIN_SPAN_NATS = 0.1
"""Of the vertical axis of a curve: a change in the third decimal must not look like a slope."""
_ALONE = {"preference": ", chosen answers", "unpaired": ", desirable answers"}
"""Of which answers of a source a held-out loss is, by its format."""
ARROW = " \u2192 "


def changes(record: RunRecord) -> Html | None:
    """Return what training changed on every held-out set; None of a reward model, which has no text to lose."""
    heading = "What changed on held-out text"
    found = record.forgetting
    if found is None and record.is_reward:
        return None
    if found is None:
        return section("changes", heading, _no_measurement(record))
    if not found.sets:
        text = "forgetting.json has no held-out set. Hold out documents with data.validation_frac."
        return section("changes", heading, missing(text))
    header = [
        "Set",
        "Role",
        "Seen",
        "Change, nats",
        "95 % interval",
        "Base \u2192 tuned, nats per token",
    ]
    why = no_interval({one.name: one.num_documents for one in found.sets})
    num_decimals = max(decimals_for(one.change_low, one.change_high) for one in found.sets)
    has_bits = any(one.base_bits_per_byte is not None for one in found.sets)
    if has_bits:
        header.append("Base \u2192 tuned, bits per byte")
    header += ["Documents", "Tokens"]
    return section(
        "changes",
        heading,
        paragraph(
            "Loss is the mean negative log-likelihood of a supervised token; lower is better. Both models "
            "scored the same documents, and the interval resamples documents in pairs: where it includes 0, "
            f"no change was seen. A document that was cut into parts is drawn whole. Fewer than {MIN_DOCUMENTS} "
            "documents give no interval."
        ),
        *([paragraph(why)] if why is not None else []),
        table(
            header,
            [_set_row(one, num_decimals, has_bits) for one in found.sets],
            "Base and tuned model by held-out set",
            num_text_columns=3,
        ),
        figures(interval_plot(found.sets)),
        _probes(found.probes),
    )


def _probes(probes: Sequence[SetComparison]) -> Html | None:
    """Return the table of kinds of text that nobody named; None without any."""
    if not probes:
        return None
    num_decimals = max(decimals_for(one.change_low, one.change_high) for one in probes)
    header = ["Kind", "Role", "Seen", "Change, nats", "95 % interval", "Base \u2192 tuned, nats per token"]
    header += ["Base \u2192 tuned, bits per byte", "Documents", "Tokens"]
    rows = [_set_row(one, num_decimals, True) for one in probes]
    return table(header, rows, "Kinds of text that nobody had to name (evaluate.probes)", num_text_columns=3)


def curves(record: RunRecord) -> Html:
    """Return held-out loss through training, a figure a source."""
    heading = "Held-out loss through training"
    names = record.metrics.names("eval/")
    drawn = [_curve(record, name) for name in names]
    if not any(drawn):
        text = "metrics.jsonl has no held-out loss. Train with data.validation_frac above 0, and with"
        return section("curves", heading, missing(text, "evaluate.every_steps=N"))
    dashed = (
        "The dashed line is the loss before the first step, or the base model's where that was not logged."
    )
    has_curve = any(len(record.metrics.series(f"eval/{name}").points) > 1 for name in names)
    return section(
        "curves",
        heading,
        *([paragraph(dashed)] if has_curve else []),
        figures(*drawn, *_drift(record)),
    )


def divergence(record: RunRecord) -> Html | None:
    """Return how far predictions moved from the base model's; None of a reward model, which makes none."""
    if record.is_reward:
        return None
    heading = "Distance from the base model (KL)"
    rows = record.forgetting.kl if record.forgetting is not None else ()
    if not rows:
        return section("kl", heading, missing("No KL divergence was measured for this run."))
    header = ["Prompts", "KL, nats per token", "95 % interval", "Tokens", "Documents"]
    return section(
        "kl",
        heading,
        paragraph(
            "How far the tuned model's next-token probabilities moved from the base model's on these prompts, "
            "averaged over tokens: 0 means the same, and more movement tends to mean more forgetting."
        ),
        table(header, [_divergence_row(row) for row in rows], "KL divergence between base and tuned model"),
    )


def recovery(record: RunRecord) -> Html | None:
    """Return the recovery probe; None where there was none."""
    found = record.forgetting.recovery if record.forgetting is not None else None
    if found is None:
        return None
    header = ["Set", "Base", "After training", "After the probe", "Probe steps"]
    row: list[Child] = [
        found.set,
        fixed(found.base_nats, 3),
        fixed(found.tuned_nats, 3),
        fixed(found.recovered_nats, 3),
        count(found.steps),
    ]
    return section(
        "recovery",
        "Recovery probe",
        paragraph(_recovery_in_words(found)),
        table(header, [row], "Recovery probe: held-out loss in nats per token"),
    )


def _no_measurement(record: RunRecord) -> Html:
    text = (
        "The run directory has no forgetting.json, so nothing here compares the tuned model with its base "
        "document by document. To measure:"
    )
    return missing(text, command_for(record, "report"))


def _set_row(one: SetComparison, num_decimals: int, has_bits: bool) -> list[Child]:
    row: list[Child] = [
        one.name,
        one.role,
        in_a_word(one),
        signed(one.change_nats, num_decimals),
        between(one.change_low, one.change_high, num_decimals),
        _pair(one.base_nats, one.tuned_nats),
    ]
    if has_bits:
        row.append(_pair(one.base_bits_per_byte, one.tuned_bits_per_byte))
    return [*row, count(one.num_documents), count(one.num_targets)]


def _pair(base: float | None, tuned: float | None) -> str:
    return "unknown" if base is None or tuned is None else f"{fixed(base, 3)}{ARROW}{fixed(tuned, 3)}"


def _curve(record: RunRecord, name: str) -> Html | None:
    found = record.metrics.series(f"eval/{name}", name)
    if not found.points:
        return None
    of = _ALONE.get(record.setting(f"data.sources.{name}.format"), "")
    return line_chart(
        f"Held-out pairs of {name}" if record.is_reward else f"{name}{of}",
        "optimizer step",
        "loss of a pair" if record.is_reward else "nats per token",
        [found],
        _base_value(record, found),
        min_span=MIN_SPAN_NATS,
    )


def _drift(record: RunRecord) -> list[Html | None]:
    """Return the distance from the base through training, as far as it was taken."""
    rise = record.metrics.series(FORGETTING, "mean of sources")
    kl = [record.metrics.series(f"kl/{name}", name) for name in record.metrics.names("kl/")]
    kl = [line for line in kl if line.points]
    unit = "nats per token"
    return [
        line_chart("Rise of what is not target", "optimizer step", unit, [rise], ("base", 0.0))
        if rise.points
        else None,
        line_chart("KL to the base", "optimizer step", unit, kl, from_zero=True) if kl else None,
    ]


def _base_value(record: RunRecord, found: Series) -> tuple[str, float] | None:
    """Return the value at step 0, which the same code measured; else that of forgetting.json."""
    if found.points[0][0] == 0:
        return "base", found.points[0][1]
    sets = record.forgetting.sets if record.forgetting is not None else ()
    return next((("base", one.base_nats) for one in sets if one.name == found.label), None)


def _divergence_row(row: Divergence) -> list[Child]:
    num_decimals = decimals_for(row.low, row.high)
    return [
        row.prompts,
        fixed(row.nats, num_decimals),
        between(row.low, row.high, num_decimals),
        count(row.num_tokens),
        count(row.num_documents),
    ]


def _recovery_in_words(found: Recovery) -> str:
    rise = found.tuned_nats - found.base_nats
    if rise <= 0:
        return f"Training had not raised the loss of {found.set}, so there was nothing to recover."
    share = (found.tuned_nats - found.recovered_nats) / rise
    return (
        f"Training raised the loss of {found.set} by {fixed(rise, 3)} nats; {count(found.steps)} steps on it "
        f"brought back {percent(share)} of that. What comes back quickly was covered over rather than lost."
    )
