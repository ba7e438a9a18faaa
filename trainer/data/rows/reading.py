"""What was noticed while a source was read, in the few lines that `prepare` prints and the store keeps."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

NAMES_SHOWN = 8


@dataclass(slots=True)
class Reading:
    """Notes of one source; whole when its last row was read."""

    lines: list[str] = field(default_factory=list)
    """Sentences, as they came."""
    counts: Counter[str] = field(default_factory=Counter)
    """What happened to rows or values, and how often: a phrase in the singular, and its count."""
    unread: set[str] = field(default_factory=set)
    """Columns that are there, are not read and may well be left unread."""

    def to_lines(self) -> list[str]:
        """Return everything as lines for a person."""
        lines = list(self.lines)
        if self.unread:
            lines.append(f"columns that are not read: {join_names(sorted(self.unread))}")
        return lines + [f"{count:,} x {what}" for what, count in sorted(self.counts.items()) if count]


def join_names(names: list[str]) -> str:
    """Join names for a line; many are cut to the first few and their number."""
    shown = ", ".join(names[:NAMES_SHOWN])
    left = len(names) - NAMES_SHOWN
    return f"{shown} and {left:,} more" if left > 0 else shown
