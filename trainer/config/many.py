"""How many of something, in words. Pure."""

from __future__ import annotations


def many(count: int, noun: str) -> str:
    """Return a count and its noun, which takes an s where there are not exactly one of it."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
