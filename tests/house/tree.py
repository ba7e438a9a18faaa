"""What the house tests look at: the files of the checkout."""

import ast
import functools
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def python_files(*folders: str) -> list[Path]:
    """Return the Python files below the folders, relative to the root."""
    found = [path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted(found)


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def shipped_files() -> list[Path]:
    """Return what is or would be committed; without git, the files of the known folders."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode == 0:
        paths = [Path(line) for line in listing.stdout.splitlines()]
        return sorted(path for path in paths if (ROOT / path).is_file())
    folders = ("trainer", "conf", "launch", "tests", "benchmarks", "docker", "docs", ".ci")
    below = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    return sorted(path.relative_to(ROOT) for path in below if "__pycache__" not in path.parts)
