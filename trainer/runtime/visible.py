"""Text of others on a terminal: characters that it would act on are written out. Pure."""

from __future__ import annotations

import re

_ACTS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters but line breaks and tabs, and those that turn the direction of writing."""


def visible(text: str) -> str:
    r"""Return a text with what a terminal would act on written out, such as \x1b for escape."""
    return _ACTS.sub(_written_out, text)


def _written_out(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"
