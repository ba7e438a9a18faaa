"""The documents that lost most, with each token as dark as it became less likely."""

from __future__ import annotations

import math
from itertools import groupby

from trainer.config.many import many
from trainer.evaluate.forgotten import MIN_TARGETS, ForgottenDocument, TextPart
from trainer.report.element import Html, element, join
from trainer.report.number import count, fixed, signed
from trainer.report.record import RunRecord
from trainer.report.section import missing, paragraph, section

LEVELS = (0.1, 0.5, 1.0, 2.0)
"""Nats from which a token has each of the darker colours."""
ARROW = " \N{RIGHTWARDS ARROW} "


def coloured(record: RunRecord) -> Html | None:
    """Return the section; None of a run that was not compared with its base, or was asked to show none."""
    if record.forgetting is None or record.forgotten is None:
        return None
    heading = "What was lost, word by word"
    if not record.forgotten:
        text = "No held-out document became less likely."
        return section("forgotten", heading, missing(text))
    return section(
        "forgotten",
        heading,
        paragraph(
            "The held-out documents whose own loss rose most, the most first; those with fewer than "
            f"{MIN_TARGETS} learnt tokens come last. The darker a word, the less likely the tuned model finds it than "
            "the base did. Words without colour lost nothing, or are not what the loss is of. Hover to see by how "
            "many nats."
        ),
        _legend(),
        *(_document(one, is_open=number < 3) for number, one in enumerate(record.forgotten)),
    )


def _legend() -> Html:
    keys = []
    for number, (low, high) in enumerate(zip(LEVELS, (*LEVELS[1:], None), strict=True), start=1):
        factor = f"{math.exp(low):.1f} times less likely"
        text = f"{low:g} to {high:g} nats" if high is not None else f"{low:g} nats and more"
        keys.append(element("span", f"{text} (from {factor})", class_=f"lost{number}"))
    return element("p", *(join(one, " ") for one in keys), class_="tokens")


def _document(one: ForgottenDocument, is_open: bool) -> Html:
    rise = signed(one.tuned_nats - one.base_nats, 3)
    head = (
        f"{one.set}, document {one.document + 1}: {rise} nats per token ({fixed(one.base_nats, 3)}{ARROW}"
        f"{fixed(one.tuned_nats, 3)}, {many(one.num_targets, 'learnt token')})"
    )
    before = "\N{HORIZONTAL ELLIPSIS} " if one.first_token else ""
    behind = " \N{HORIZONTAL ELLIPSIS}" if one.is_cut else ""
    return element(
        "details",
        element("summary", head),
        element("p", before, *_spans(one), behind, class_="tokens"),
        element("p", _where(one), class_="note") if one.first_token or one.is_cut else None,
        open=is_open,
    )


def _where(one: ForgottenDocument) -> str:
    return (
        f"Shown from token {count(one.first_token + 1)} of {count(one.num_tokens)} on, where most was lost together."
        if one.first_token
        else f"The beginning of {count(one.num_tokens)} tokens."
    )


def _spans(one: ForgottenDocument) -> list[Html]:
    """Return the text; parts of no colour that stand together are one."""
    found = []
    for level, parts in groupby(one.parts, key=_level):
        if not level:
            found.append(join("".join(part.text for part in parts)))
            continue
        found += [
            element("span", part.text, class_=f"lost{level}", title=f"{signed(part.rise or 0.0, 2)} nats")
            for part in parts
        ]
    return found


def _level(part: TextPart) -> int:
    rise = part.rise if part.rise is not None else 0.0
    return sum(rise >= level for level in LEVELS)
