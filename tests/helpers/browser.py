"""Opens a page in headless Chromium and tells what is shown. Needs no Python package."""

import functools
import html
import itertools
import json
import re
import shutil
import subprocess
from dataclasses import dataclass

import pytest

from tests.helpers.debian import NotInstalled, install
from tests.helpers.wait import LIMIT_S

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# A window of Chromium is at least 500 wide, a frame may be narrower; it has its own media queries.
FRAME = """<!doctype html><meta charset="utf-8"><body>
<iframe style="border:0;width:{width}px;height:800px" srcdoc="{page}"></iframe>
<pre id="seen"></pre>
<script>
onload = () => {{
  const frame = document.querySelector("iframe"), page = frame.contentDocument;
  const box = shape => {{
    const r = shape.getBoundingClientRect();
    return {{text: shape.textContent, left: r.left, right: r.right, top: r.top, bottom: r.bottom}};
  }};
  document.getElementById("seen").textContent = JSON.stringify({{
    text: page.body.innerText,
    width: page.documentElement.clientWidth,
    scroll_width: page.documentElement.scrollWidth,
    figures: [...page.querySelectorAll("svg")].map(svg => ({{
      ...box(svg), text: svg.getAttribute("aria-label"), words: [...svg.querySelectorAll("text")].map(box),
    }})),
    scripts: page.scripts.length,
    requests: frame.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name),
    background: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
  }});
}};
</script>"""


@dataclass(frozen=True)
class Seen:
    """What a person would see, and what the browser complained about."""

    text: str
    width: int
    scroll_width: int
    figures: list[dict]
    scripts: int
    requests: list[str]
    background: str
    console: list[str]


@functools.cache
def find_browser():
    """Return the path of a browser, which is installed where none is and that can be done."""
    found = filter(None, map(shutil.which, NAMES))
    if path := next(found, None):
        return path
    try:
        install(NAMES[:1], NAMES[:1])
    except NotInstalled as error:
        pytest.skip(f"no browser: {error}")
    return shutil.which(NAMES[0])


def open_page(file, tmp_path, width, dark=False):
    """Open a file; return the document after its scripts have run, and what was written to the console."""
    command = [find_browser(), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [
        "--enable-logging=stderr",
        "--disable-background-networking",
        "--no-first-run",
        "--disable-dev-shm-usage",
        # Time that passes only when nothing is left to do: what a page does after it has loaded is waited for.
        "--virtual-time-budget=60000",
    ]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900"]
    command += ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run(
        [*command, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def look_at(page, width, tmp_path, dark=False):
    """Show the text of a page in a frame of `width` pixels; return what is seen."""
    file = tmp_path / f"frame-{width}.html"
    file.write_text(FRAME.format(width=width, page=html.escape(page)), encoding="utf-8")
    dom, console = open_page(file, tmp_path, max(width, 500) + 100, dark)
    found = re.search(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)
    assert found and found.group(1), f"the measuring script did not run: {console}"
    return Seen(**json.loads(html.unescape(found.group(1))), console=console)


def overlap(one, other):
    """Return whether two boxes share more than a hair."""
    wide = min(one["right"], other["right"]) - max(one["left"], other["left"])
    high = min(one["bottom"], other["bottom"]) - max(one["top"], other["top"])
    return wide > 1 and high > 2


def check_figures(seen, at_least=9):
    """Assert that figures are large enough, that their words lie inside, and that none lies over another."""
    assert len(seen.figures) >= at_least
    for figure in seen.figures:
        assert figure["right"] - figure["left"] > 200 and figure["bottom"] - figure["top"] > 100, figure[
            "text"
        ]
        for word in figure["words"]:
            assert figure["left"] - 2 <= word["left"] and word["right"] <= figure["right"] + 2, word
        hidden = [
            (a["text"], b["text"]) for a, b in itertools.combinations(figure["words"], 2) if overlap(a, b)
        ]
        assert not hidden, (figure["text"], hidden)
