"""Build HTML and SVG from nested calls; every text is escaped unless it is already an element."""

from __future__ import annotations

from html import escape

Attribute = str | float | bool | None


class Html(str):
    """Markup that is safe to insert as it is."""

    __slots__ = ()


Child = Html | str | None

_EMPTY = frozenset({"meta", "link", "br", "line", "rect", "circle", "path"})


def element(tag: str, *children: Child, **attributes: Attribute) -> Html:
    """Return one element.

    A trailing `_` of an attribute goes (`class_`), other `_` become `-`; None and False leave it out.
    """
    spelled = "".join(_attribute(key, value) for key, value in attributes.items())
    if tag in _EMPTY and not children:
        return Html(f"<{tag}{spelled}/>")
    return Html(f"<{tag}{spelled}>{join(*children)}</{tag}>")


def join(*children: Child) -> Html:
    """Return the children one after another; None is left out."""
    return Html("".join(child if isinstance(child, Html) else escape(child) for child in children if child))


def table(header: list[str], rows: list[list[Child]], caption: str, num_text_columns: int = 1) -> Html:
    """Return a table that scrolls in its own box; columns after the first ones are numbers."""

    def cell(tag: str, column: int, child: Child, scope: str | None) -> Html:
        return element(tag, child, scope=scope, class_=None if column < num_text_columns else "num")

    head = [cell("th", column, text, "col") for column, text in enumerate(header)]
    body = [
        element(
            "tr",
            *(cell("td" if i else "th", i, child, None if i else "row") for i, child in enumerate(row)),
        )
        for row in rows
    ]
    inner = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *head)),
        element("tbody", *body),
    )
    return element("div", inner, class_="scroll", role="region", aria_label=caption, tabindex=0)


def drawing(described: str, *parts: Child, width: float, height: float) -> Html:
    """Return a picture of a page; `described` is what a screen reader says of it."""
    return element(
        "svg",
        element("title", described),
        *parts,
        viewbox=f"0 0 {width:.0f} {height:.0f}",
        role="img",
        aria_label=described,
    )


def _attribute(key: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    name = key.removesuffix("_").replace("_", "-")
    if name == "viewbox":
        name = "viewBox"
    if value is True:
        return f" {name}"
    text = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    return f' {name}="{escape(text)}"'
