"""Versions of packages below which a file of weights can run as code. Reads what is installed, imports nothing."""

from __future__ import annotations

import re
from collections.abc import Callable

from trainer.config.rule import observed
from trainer.config.snapshot import installed
from trainer.errors import ConfigError

FLOORS = {
    "torch": ((2, 10), "CVE-2025-32434 and CVE-2026-24747 of torch.load with weights_only"),
    "transformers": ((5, 3), "CVE-2026-1839 and CVE-2026-4372 of models without trust_remote_code"),
}
"""The first version without them, and what they are."""


def check_floors(version_of: Callable[[str], str | None] = installed) -> None:
    """Raise where a package that is installed is older than its floor.

    Raises:
        ConfigError: Names it and the holes.
    """
    for package, (floor, holes) in FLOORS.items():
        version = version_of(package)
        found = re.match(r"(\d+)\.(\d+)", version or "")
        if found and (int(found[1]), int(found[2])) < floor:
            least = ".".join(map(str, floor))
            raise ConfigError(
                observed(
                    package, f"{least} or newer ({holes})", f"{version}", f"pip install '{package}>={least}'"
                )
            )
