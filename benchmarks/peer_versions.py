"""Which versions of packages ran; runs beside a peer, in its own environment, and needs nothing of ours."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata


def versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Return the version of each package; None for one that is not installed."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found
