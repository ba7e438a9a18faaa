"""Addresses as they may be shown: without the password of a user and without words that sign them. Pure."""

from __future__ import annotations

import re

_USER = re.compile(r"(?<=://)(?![^/?#\s@'\"]*\$\{oc\.env:)[^/?#\s@'\"]+@")
_KEYS = re.compile(
    r"(?:(?<=s3://)|(?<=s3a://)|(?<=gs://)|(?<=gcs://))[^/?#\s@:'\"]+:[^?#\s@'\"]*@", re.IGNORECASE
)
"""Of a store: every second secret of AWS has a slash in it."""
_SIGNING = re.compile(
    r"([?&][^=\s&'\"]*(?:sig|token|key|secret|password|credential)[^=\s&'\"]*=)(?!\$\{)[^&\s'\"]+",
    re.IGNORECASE,
)


def shown_address(text: str) -> str:
    """Return a text in which no address tells who asks, and what that needs to know; others stay as they are."""
    return _SIGNING.sub(r"\1...", _USER.sub("", _KEYS.sub("", text)))


def has_keys(address: str) -> bool:
    """Tell whether an address of a store has the keys to it in it."""
    return _KEYS.search(address) is not None
