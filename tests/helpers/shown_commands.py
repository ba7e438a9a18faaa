"""Command lines of ours that stand in blocks of Markdown, and the files of configuration that stand beside them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
OURS = re.compile(
    r"(?:^|\s)(?:palimpsest|--module trainer|-m trainer)\s+(?!palimpsest )((?:[a-z][a-z-]*(?:\s|$)|-|\S+=).*)"
)
CONF_FILE = re.compile(r"\A#[^\n]*?(\w+)/(\w+)\.yaml")


@dataclass(frozen=True)
class Shown:
    """A command line as a page shows it."""

    page: str
    line: int
    last: int
    words: tuple[str, ...]
    error: str | None
    """What the page says that it answers, where that is an error."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def shown_commands(root: Path, pages: list[str]) -> list[Shown]:
    """Return every command line of ours in the blocks of the pages."""
    return [one for page in pages for one in _of_page(root, page)]


def _of_page(root: Path, page: str) -> list[Shown]:
    text = (root / page).read_text(encoding="utf-8")
    found = []
    for block in BLOCK.finditer(text):
        first = text[: block.start(2)].count("\n") + 1
        lines = block[2].splitlines()
        number = 0
        while number < len(lines):
            at, line = first + number, lines[number]
            while line.endswith("\\"):
                number += 1
                line = line[:-1] + lines[number]
            number += 1
            match = OURS.search(line)
            if match and block[1] != "yaml":
                following = lines[number] if number < len(lines) else ""
                error = following.removeprefix("Error: ") if following.startswith("Error: ") else None
                found.append(
                    Shown(page, at, first + number - 1, tuple(shlex.split(match[1], comments=True)), error)
                )
    return found


def shown_python(root: Path, pages: list[str]) -> dict[str, list[str]]:
    """Return the blocks of Python that pages show, by page."""
    found: dict[str, list[str]] = {}
    for page in pages:
        for block in BLOCK.finditer((root / page).read_text(encoding="utf-8")):
            if block[1] == "python":
                found.setdefault(page, []).append(block[2])
    return found


def shown_configuration(root: Path, pages: list[str]) -> dict[str, str]:
    """Return the YAML files that pages show, by GROUP/OPTION: those whose first line is a comment that names one."""
    found = {}
    for page in pages:
        for block in BLOCK.finditer((root / page).read_text(encoding="utf-8")):
            named = CONF_FILE.match(block[2])
            if block[1] == "yaml" and named:
                found[f"{named[1]}/{named[2]}"] = block[2]
    return found
