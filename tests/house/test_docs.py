"""The documentation builds without a warning, is shown by a browser, and quotes what the code says."""

import ast
import functools
import importlib.util
import json
import re
import subprocess
import sys

import pytest

from tests.helpers.browser import look_at, open_page
from tests.helpers.families import FAMILIES
from tests.house.tree import ROOT, parse, python_files
from trainer.config.describe import known_keys
from trainer.config.options import group_options

DOCS = ROOT / "docs"


def load(name):
    """Import a script of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site as `bash docs/build.sh` does; return its folder."""
    folder = tmp_path_factory.mktemp("docs")
    words = [sys.executable, str(DOCS / "build.py"), str(folder)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "site"


def test_every_page_is_built_and_nothing_is_asked_of_the_network(site):
    pages = {file.stem for file in DOCS.glob("*.md")}
    assert pages <= {file.stem for file in site.glob("*.html")} and len(pages) >= 25
    for file in site.glob("*.html"):
        loaded = re.findall(
            r"<(?:script|img|link)[^>]*?(?:src|href)=\"(https?:[^\"]*)", file.read_text(encoding="utf-8")
        )
        assert not loaded, (file.name, loaded)


def test_a_browser_shows_a_page(site, tmp_path):
    shown, console = open_page(site / "configuration.html", tmp_path, 1280)
    assert "zero.max_live_parameters" in shown and not console


def test_a_phone_shows_a_page_with_wide_tables(site):
    """Scripts fail in the frame that measures, which has no address."""
    seen = look_at((site / "forgetting.html").read_text(encoding="utf-8"), 390, site)
    assert seen.scroll_width <= 390 and "German manual pages" in seen.text
    assert all(request.startswith("file:") for request in seen.requests), seen.requests


def test_dead_links_and_anchors_of_a_site_are_told(tmp_path):
    (tmp_path / "b.html").write_text('<h2 id="there">B</h2>')
    links = ("b.html", "b.html#there", "b.html#gone", "gone.html", "../out.html", "https://example.org")
    (tmp_path / "a.html").write_text("".join(f'<a href="{link}">x</a>' for link in links))
    assert [found.split("'")[1] for found in load("build").dead_links(tmp_path)] == [
        "b.html#gone",
        "gone.html",
        "../out.html",
    ]


def test_the_configuration_reference_is_that_of_the_source():
    text = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert text == load("reference").page(), "run: python docs/reference.py > docs/configuration.md"
    headings = set(re.findall(r"^##+ `(.+)`$", text, re.MULTILINE))
    assert headings >= set(known_keys()), "a key is missing"
    rows = dict(re.findall(r"^\| `(\w+)` \| .+? \| (.*) \|$", text, re.MULTILINE))
    assert {group: row.split(", ") for group, row in rows.items()} == {
        group: [option for option in options if option != "none"]
        for group, options in group_options().items()
    }


def test_the_table_of_families_is_what_was_measured():
    text = (DOCS / "models.md").read_text(encoding="utf-8")
    assert text == load("matrix").page(text), "run: python docs/matrix.py"
    results = json.loads((ROOT / "benchmarks" / "results" / "families.json").read_text(encoding="utf-8"))
    assert [row["family"] for row in results["results"]] == list(FAMILIES)


def test_figures_are_what_the_code_draws():
    for name, draw in load("figures").FIGURES.items():
        drawn = (DOCS / "img" / f"{name}.svg").read_text(encoding="utf-8")
        assert drawn == draw(), "run: python docs/figures.py"


@functools.cache
def said_by_the_code():
    """Return every literal piece of text in the code, one a line."""
    pieces = set()
    for path in python_files("trainer", "launch"):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                pieces.update(re.split(r"\{\w*\}", node.value))
    return "\n".join(" ".join(piece.split()) for piece in pieces)


VALUES = """ADDRESS BYTE CHECKPOINTS COLUMN COLUMNS COUNT DIGEST FILE FIX FOLDER GROUP HOST ID KEY KEYS LINE MODEL
NAME NEWEST NODE OFFSET OPTION OPTIONS PATH PORT PRODUCT REASON REASONS RULE RUN_DIR SECONDS SIZE SOURCE STATE VALUE
VALUES WHAT WORD"""
BETWEEN = re.compile(rf"\b(?:{'|'.join(VALUES.split())})\b|must be|, but is|instead|[`'\[\]()=?]|\.(?=\s|$)")


def fixed_parts(sentence):
    """Return what a quoted sentence has beside the values in it, and the words that all sentences share."""
    parts = (part.strip(" .,:;") for part in BETWEEN.split(sentence))
    return [part for part in parts if len(part) > 2]


QUOTED = re.findall(r"^> (.+)$", (DOCS / "errors.md").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("sentence", QUOTED)
def test_a_quoted_error_is_in_the_code(sentence):
    parts = fixed_parts(sentence)
    assert parts or "RULE" in sentence
    missing = [part for part in parts if part not in said_by_the_code()]
    assert not missing, missing


def test_many_errors_are_quoted_and_a_wrong_quote_would_be_told():
    assert len(QUOTED) >= 40
    parts = fixed_parts("`data.cache_dir` must be roomy for WHAT, but the disk of 'FOLDER' is overfull.")
    assert [part for part in parts if part not in said_by_the_code()] == ["roomy for", "is overfull"]
