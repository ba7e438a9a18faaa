"""The review page in a real browser: rows are text, ticks stay, and what it saves is taken back."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.browser import look_at, open_page
from trainer.cli import run_command
from trainer.data.rows.verdicts import read_verdicts
from trainer.report.review_page import ReviewSheet, review_page

HOSTILE = (
    "</pre><script>console.error('in')</script><img src=http://127.0.0.1:9/x onerror=console.error('in')>"
)
# A person ticks one row with the mouse and two with keys, writes a name and a note, leaves, comes back, and saves.
FRAME = """<!doctype html><meta charset="utf-8"><body><iframe srcdoc="{page}"></iframe><pre id="seen"></pre><script>
const frame = document.querySelector("iframe");
let times = 0;
frame.onload = async () => {{
  const page = frame.contentDocument, view = frame.contentWindow;
  const press = key => page.activeElement.dispatchEvent(new view.KeyboardEvent("keydown", {{key, bubbles: true}}));
  times += 1;
  if (times === 1) {{
    page.querySelector("article input[value=accept]").click();
    page.querySelector("article").focus();
    press("j"); press("r"); press("a"); press("a"); press("u");
    const note = page.querySelector(".note");
    note.value = "fine"; note.dispatchEvent(new view.Event("input"));
    const name = page.getElementById("reviewer");
    name.value = "Anna"; name.dispatchEvent(new view.Event("input"));
    frame.srcdoc = frame.srcdoc;
    return;
  }}
  let saved = null, named = null;
  view.URL.createObjectURL = blob => {{ saved = blob; return "#"; }};
  view.HTMLAnchorElement.prototype.click = function () {{ named = this.download; }};
  page.getElementById("save").click();
  document.getElementById("seen").textContent = JSON.stringify({{
    saved: await saved.text(), named, count: page.getElementById("count").textContent,
  }});
}};
</script>"""


def sheet_of(tmp_path: Path) -> tuple[Path, str]:
    file = tmp_path / "made.jsonl"
    turns = [{"role": "user", "content": HOSTILE}, {"role": "assistant", "content": "answer"}]
    rows: list[dict[str, Any]] = [{"messages": turns, "provenance": {"model": "m"}}]
    rows += [{"prompt": f"p{n}", "completion": "c" * 300} for n in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run_command(["data", "review", "export", str(file), f"output={tmp_path}"]) == 0
    return file, (tmp_path / "made.html").read_text()


def test_a_person_ticks_comes_back_saves_and_imports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, page = sheet_of(tmp_path)
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(page=html.escape(page)), encoding="utf-8")
    dom, console = open_page(frame, tmp_path, 900)
    found = re.search(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)
    assert found and found.group(1), f"the script did not run: {console}"
    seen = json.loads(html.unescape(found.group(1)))
    assert seen["named"] == "made.jsonl.reviewed.json"
    assert seen["count"] == "3 accepted, 1 rejected, 1 left"
    saved = tmp_path / seen["named"]
    saved.write_text(seen["saved"])
    assert run_command(["data", "review", "import", str(file), str(saved)]) == 0
    assert "3 of 4 rows accepted" in capsys.readouterr().out
    kept = read_verdicts(file)
    assert kept is not None
    said = [(one.line, one.verdict, one.note, one.reviewer) for one in kept.verdicts]
    assert said == [
        (1, "accept", "fine", "Anna"),
        (2, "reject", "", "Anna"),
        (3, "accept", "", "Anna"),
        (4, "accept", "", "Anna"),
    ]


@pytest.mark.parametrize("width", [390, 1280])
def test_rows_are_text_and_the_page_asks_for_nothing(tmp_path: Path, width: int) -> None:
    seen = look_at(sheet_of(tmp_path)[1], width, tmp_path)
    assert HOSTILE in seen.text and "messages: user" in seen.text and "5 left" in seen.text
    assert seen.scripts == 1 and not seen.requests and not seen.console
    assert seen.scroll_width <= width, "the page scrolls sideways"


def test_the_page_follows_a_dark_screen(tmp_path: Path) -> None:
    page = review_page(ReviewSheet("made.jsonl", 0, 0, []))
    assert look_at(page, 600, tmp_path).background == "rgb(255, 255, 255)"
    assert look_at(page, 600, tmp_path, dark=True).background == "rgb(20, 24, 28)"
