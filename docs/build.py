"""Build the documentation from the pages of docs/, and check every link of the site.

    python docs/build.py [FOLDER]     needs pip install -e '.[docs]'; FOLDER is build/docs, and FOLDER/site the site

Zensical was chosen over Material for MkDocs: the latter gets fixes only, and MkDocs below it has had no release since
2024. It is by the same people, reads the same mkdocs.yml, and knows dead links and anchors. It is young, so
pyproject.toml pins it, and what it does not see (pictures, pages missing from the contents) is looked at here.
"""

from __future__ import annotations

import functools
import importlib.util
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
PAGES = ("*.md", "*.css", "img/*")


class _Page(HTMLParser):
    """What a page links to, and the anchors that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Note the links and the anchor of a tag."""
        for name, value in attributes:
            if value and name in ("href", "src"):
                self.links.append(value)
            elif value and name == "id":
                self.anchors.add(value)


def main() -> None:
    """Build, check, and end with 1 where something is wrong."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "docs").absolute()
    problems = [*collect(out), *render(out)]
    problems = problems or dead_links(out / "site")
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{out / 'site' / 'index.html'}: {len(problems)} problems")
    sys.exit(1 if problems else 0)


def collect(out: Path) -> list[str]:
    """Put everything that the site is made of into a folder; return pages that the contents miss or do not have."""
    is_ours = not out.exists() or not any(out.iterdir()) or (out / "mkdocs.yml").is_file()
    if not is_ours or (out / "docs").resolve() == DOCS:
        sys.exit(
            f"FOLDER must be empty, missing or of an earlier build, but is {out} instead. Name another one."
        )
    for name in ("docs", "site"):
        shutil.rmtree(out / name, ignore_errors=True)
    for pattern in PAGES:
        for file in sorted(DOCS.glob(pattern)):
            place = out / "docs" / file.relative_to(DOCS)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)
    shutil.copy(ROOT / "mkdocs.yml", out)
    named = set(_named(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    there = {file.name for file in (out / "docs").glob("*.md")}
    missing = [f"mkdocs.yml: `nav` must name {name}, but does not. Add it." for name in sorted(there - named)]
    return missing + [
        f"mkdocs.yml: `nav` names {name}, but docs/{name} is not there." for name in sorted(named - there)
    ]


def _named(entry: object) -> list[str]:
    """Return the pages of the contents."""
    if isinstance(entry, list | dict):
        inner = entry.values() if isinstance(entry, dict) else entry
        return [name for one in inner for name in _named(one)]
    return [str(entry)]


def render(out: Path) -> list[str]:
    """Run Zensical; a warning is a problem."""
    if importlib.util.find_spec("zensical") is None:
        return ["Zensical must be installed, but is not. Run: pip install -e '.[docs]'"]
    words = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    done = subprocess.run(words, cwd=out, capture_output=True, text=True)
    said = f"{done.stdout}{done.stderr}"
    return [said.partition("Traceback")[0]] if done.returncode or "Warning" in said else []


def dead_links(site: Path) -> list[str]:
    """Return every link of the site to a file or an anchor that is not there, and every one that leaves it."""
    problems = []
    for file in sorted(site.rglob("*.html")):
        for link in _read(file).links:
            wrong = _wrong(site, file, link)
            if wrong:
                problems.append(f"{file.relative_to(site)}: '{link}' {wrong}")
    return problems


def _wrong(site: Path, file: Path, link: str) -> str:
    """Return what is wrong with a link; nothing where it leads somewhere."""
    parts = urlsplit(link)
    if parts.scheme in ("http", "https", "mailto", "data"):
        return ""
    target = (
        file
        if not parts.path
        else (site / parts.path.lstrip("/") if link.startswith("/") else file.parent / unquote(parts.path))
    )
    if target.is_dir():
        target /= "index.html"
    if not target.resolve().is_relative_to(site) or not target.is_file():
        return "leads nowhere"
    if (
        parts.fragment
        and target.suffix == ".html"
        and unquote(parts.fragment) not in _read(target.resolve()).anchors
    ):
        return "names an anchor that is not there"
    return ""


@functools.cache
def _read(file: Path) -> _Page:
    page = _Page()
    page.feed(file.read_text(encoding="utf-8"))
    return page


if __name__ == "__main__":
    main()
