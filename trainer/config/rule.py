"""The one form of a sentence about a broken rule."""

from __future__ import annotations


def must(key: str, rule: str, value: object, fix: str) -> str:
    """Return `key` must be RULE, but is VALUE instead. FIX."""
    shown = repr(value) if isinstance(value, str) else value
    return f"`{key}` must be {rule}, but is {shown} instead. {fix}"


def observed(key: str, rule: str, state: str, fix: str) -> str:
    """Return the same sentence of something that was measured: its state is words of ours, without quotes."""
    return f"`{key}` must be {rule}, but is {state} instead. {fix}".rstrip()
