"""One HTML file: head with the style, and the body. No script, nothing loaded from elsewhere."""

from __future__ import annotations

from trainer.report.element import Child, Html, element
from trainer.report.style import STYLE

# A browser refuses anything the page does not hold itself, should escaping ever fail.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def document(title: str, *children: Child) -> str:
    """Return the whole file."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="icon", href="data:,"),
        element("title", title),
        element("style", Html(STYLE)),
    )
    body = element("body", element("main", *children))
    return "<!doctype html>\n" + element("html", head, "\n", body, lang="en") + "\n"
