"""Addresses as they may be shown: without the password of a user and without words that sign them. Pure."""

from __future__ import annotations

import re

_USER = re.compile(r"(?<=://)(?![^/?#\s@'\"]*\$\{oc\.env:)[^/?#\s@'\"]+@")
_SIGNING = re.compile(
    r"([?&][^=\s&'\"]*(?:sig|token|key|secret|password|credential)[^=\s&'\"]*=)(?!\$\{)[^&\s'\"]+",
    re.IGNORECASE,
)


def shown_address(text: str) -> str:
    """Return a text in which no address tells who asks, and what that needs to know; others stay as they are."""
    return _SIGNING.sub(r"\1...", _USER.sub("", text))
