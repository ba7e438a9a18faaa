"""Sections of the page: a heading, what it means in a sentence, and what to do where nothing was recorded."""

from __future__ import annotations

import shlex

from trainer.report.element import Child, Html, element, join
from trainer.report.record import RunRecord


def section(key: str, heading: str, *children: Child) -> Html:
    """Return a section that can be linked to."""
    return element("section", element("h2", heading, id=f"{key}-heading"), *children, id=key)


def figures(*drawn: Html | None) -> Html:
    """Return figures side by side where there is room."""
    return element("div", *drawn, class_="figures")


def missing(text: str, command: str = "") -> Html:
    """Say what is not there, and the command that makes it."""
    shown = [element("code", command)] if command else []
    return element("p", text, *([" "] if command else []), *shown, class_="missing")


def definitions(facts: dict[str, str]) -> Html:
    """Return names and values; values that are empty are left out."""
    pairs = [
        element("div", element("dt", name), element("dd", value)) for name, value in facts.items() if value
    ]
    return element("dl", *pairs)


def command_for(record: RunRecord, command: str, *words: str) -> str:
    """Return a command line about this run, ready to paste."""
    return shlex.join(["palimpsest", command, f"run_dir={record.run_dir}", *words])


def paragraph(*children: Child, class_: str | None = None) -> Html:
    """Return a paragraph."""
    return element("p", join(*children), class_=class_)
