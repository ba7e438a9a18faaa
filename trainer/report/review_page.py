"""The page on which a person reads rows of a synthetic source and ticks them: one file, nothing loaded from elsewhere.

Rows are text of the page and never part of its script, whose digest is the only one that the browser lets run.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.config.many import many
from trainer.data.rows.verdicts import ACCEPT, PROVENANCE, REJECT, ReviewedRow
from trainer.report.element import Child, Html, element, join
from trainer.report.review_script import SCRIPT
from trainer.report.style import STYLE

KEYS = "j and k go on and back, a accepts, r rejects, u takes a verdict back, n writes a note."
MORE_STYLE = """
article { margin-top: 1rem; padding: .75rem 1rem; border: 1px solid var(--edge); border-radius: 6px; }
article:focus, article:focus-within { outline: 3px solid var(--s1); }
article.accept { border-left: 6px solid var(--s3); }
article.reject { border-left: 6px solid var(--lost); }
h3 { margin: .5rem 0 .2rem; font-size: .85rem; color: var(--soft); font-weight: 600; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
fieldset { border: 0; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: .5rem 1.25rem; align-items: center; }
input[type=text] { font: inherit; color: inherit; background: var(--page); border: 1px solid var(--edge);
  padding: .25rem .5rem; min-width: 0; flex: 1 1 12rem; }
.bar { position: sticky; top: 0; background: var(--page); padding: .6rem 0; display: flex; flex-wrap: wrap;
  gap: .5rem 1rem; align-items: center; border-bottom: 1px solid var(--edge); z-index: 1; }
button { font: inherit; padding: .3rem .9rem; color: var(--page); background: var(--s1); border: 0;
  border-radius: 4px; cursor: pointer; }
"""


@dataclass(frozen=True, slots=True)
class ReviewSheet:
    """What is to be looked at."""

    source: str
    """Name of the file."""
    num_rows: int
    """Rows of the file."""
    seed: int
    rows: Sequence[ReviewedRow]


def review_page(sheet: ReviewSheet) -> str:
    """Return the whole page."""
    script_digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script_digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    title = f"Review of {sheet.source}"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="icon", href="data:,"),
        element("title", title),
        element("style", Html(STYLE + MORE_STYLE)),
    )
    main = element(
        "main",
        element("h1", title),
        element(
            "p",
            f"{many(len(sheet.rows), 'row')} of {sheet.num_rows:,}, drawn with the seed {sheet.seed}. Accept a row "
            "that you would want a model to learn as it is. Judge every row, in whatever order: those that are left "
            "out are seldom like the others. What you tick stays in this browser until you save it.",
        ),
        element("p", "Keys: ", KEYS),
        _bar(),
        *(_article(row) for row in sheet.rows),
        id="sheet",
        data_source=sheet.source,
        data_seed=str(sheet.seed),
        data_num=str(len(sheet.rows)),
        data_key=_key(sheet),
    )
    body = element("body", main, element("script", Html(SCRIPT)))
    return "<!doctype html>\n" + element("html", head, "\n", body, lang="en") + "\n"


def _key(sheet: ReviewSheet) -> str:
    """Name this sample, for what the browser keeps of it."""
    named = json.dumps([sheet.source, [[row.line, row.digest] for row in sheet.rows]])
    return "palimpsest-review-" + hashlib.sha256(named.encode()).hexdigest()[:16]


def _bar() -> Html:
    return element(
        "div",
        element("label", "Reviewer ", element("input", type="text", id="reviewer", autocomplete="name")),
        element("span", "", id="count", role="status", aria_live="polite"),
        element("button", "Save verdicts", type="button", id="save"),
        class_="bar",
    )


def _article(row: ReviewedRow) -> Html:
    parts = [part for key, value in row.row.items() if key != PROVENANCE for part in _shown(key, value)]
    provenance = row.row.get(PROVENANCE)
    if provenance is not None:
        parts.append(element("details", element("summary", PROVENANCE), element("pre", _text(provenance))))
    return element(
        "article",
        element("h2", f"Line {row.line}"),
        *parts,
        _choice(row),
        tabindex=0,
        data_line=str(row.line),
        data_digest=row.digest,
        aria_label=f"Line {row.line}",
    )


def _choice(row: ReviewedRow) -> Html:
    options = [
        element(
            "label",
            element("input", type="radio", name=f"v{row.line}", value=value),
            Html(" "),
            value.capitalize(),
        )
        for value in (ACCEPT, REJECT)
    ]
    note = element("input", type="text", class_="note", aria_label="Note", placeholder="note")
    return element("fieldset", element("legend", "Verdict", class_="missing", hidden=True), *options, note)


def _shown(key: str, value: Any) -> list[Child]:
    """Return a field of a row as its name and its text; of a conversation, a part for each turn."""
    if isinstance(value, list) and value and all(isinstance(turn, dict) and "role" in turn for turn in value):
        return [join(element("h3", f"{key}: {turn['role']}"), element("pre", _turn(turn))) for turn in value]
    return [element("h3", key), element("pre", _text(value))]


def _turn(turn: dict[str, Any]) -> str:
    more = {key: value for key, value in turn.items() if key not in ("role", "content")}
    said = _text(turn.get("content") or "")
    return said + (("\n" if said else "") + _text(more) if more else "")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, indent=1, ensure_ascii=False)
