"""Prints what the image installs: the requirements of pyproject.toml with the versions of docker/versions.env.

    python docker/requirements.py --extras qlora,gpu --without flash-attn

A requirement without a version, or a version that nothing requires, stops with a sentence: no package of the
image gets a version that nobody chose.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

PREFIX = "PYPI_"
# To install with; no requirement of the trainer.
TOOLS = frozenset({"setuptools", "wheel", "ninja"})


def read_versions(path: Path) -> dict[str, str]:
    """Return KEY to value of every line KEY=value."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def canonical(name: str) -> str:
    """Return a package's name as PyPI compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def packages(versions: Mapping[str, str]) -> dict[str, str]:
    """Return package to version."""
    return {canonical(k.removeprefix(PREFIX)): v for k, v in versions.items() if k.startswith(PREFIX)}


def required(project: Mapping[str, object], extras: Iterable[str]) -> Iterator[str]:
    """Yield the names of the core requirements and those of the extras."""
    optional = project["optional-dependencies"]
    core = project["dependencies"]
    assert isinstance(optional, dict)
    assert isinstance(core, list)
    for extra in extras:
        if extra not in optional:
            known = ", ".join(sorted(optional))
            raise SystemExit(f"EXTRAS must name extras of pyproject.toml ({known}), but names {extra}.")
    for line in [*core, *(line for extra in extras for line in optional[extra])]:
        found = re.match(r"[\w.-]+", line)
        assert found
        yield canonical(found.group())


def main() -> int:
    """Print one `name==version` a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--extras", default="", help="extras of pyproject.toml, with commas")
    parser.add_argument("--without", default="", help="packages to leave out, with commas")
    arguments = parser.parse_args()
    versions = packages(read_versions(arguments.root / "docker" / "versions.env"))
    project = tomllib.loads((arguments.root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    left_out = {canonical(name) for name in arguments.without.split(",")}
    extras = [extra for extra in arguments.extras.split(",") if extra]
    names = sorted((set(required(project, extras)) | TOOLS) - left_out)
    missing = [name for name in names if name not in versions]
    if missing:
        keys = ", ".join(PREFIX + name.upper().replace("-", "_") for name in missing)
        print(
            f"docker/versions.env must have a version for every package, but lacks {keys}.", file=sys.stderr
        )
        return 2
    for name in names:
        print(f"{name}=={versions[name]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
