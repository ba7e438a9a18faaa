"""Take secrets out of what leaves the machine. Pure but for the names and values of os.environ.

Works by the name of a key and by the look of a value; it cannot know a secret that has neither.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

REMOVED = "<removed>"

_SECRET_WORDS = {
    "key", "apikey", "token", "authtoken", "secret", "password", "passwd", "passphrase",
    "credential", "credentials",
}  # fmt: skip
# `token` is our daily noun: flops_per_token is a number, pad_token is a piece of text.
_PLAIN_TOKEN_WORDS = {"per", "pad", "eos", "bos", "unk", "sep", "cls", "mask", "special"}
# A 40-digit hexadecimal number under one of these is a commit, not a wandb key.
_DIGEST_WORDS = {"revision", "sha", "sha1", "commit", "digest", "hash"}

_HEX_40 = re.compile(r"(?<![0-9A-Za-z])[0-9a-f]{40}(?![0-9A-Za-z])")
_SECRET_VALUES = (
    re.compile(r"(?<![0-9A-Za-z])hf_(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{16,}"),
    re.compile(r"wandb_v\d+_[A-Za-z0-9_\-]{16,}"),
    re.compile(r"(?<![0-9A-Za-z])sk-[A-Za-z0-9_\-]{16,}"),
    re.compile(r"(?:AKIA|ASIA)[0-9A-Z]{12,}"),
    re.compile(r"(?:gh[pousr]_|github_pat_|glpat-|xox[abprs]-)[A-Za-z0-9_\-]{10,}"),
    re.compile(r"(?<=://)[^/?#\s@]+(?:@[^/?#\s@]+)*(?=@)"),
    re.compile(r"(?<=[Bb]earer )\S+"),
    re.compile(
        r"(?i)(?<![a-z])(?:[a-z0-9_\-]*(?:api_?key|access_?key|secret|password|credential)"
        r"[a-z0-9_\-]*|[a-z0-9_\-]*token|x-amz-signature)=[^&\s'\"]+"
    ),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*-----|\Z)"),
)
_MIN_ENV_CHARS = 4
_MIN_ENV_CHARS_INSIDE_TEXT = 8


def redact(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return a deep copy of plain values in which every secret reads `<removed>`."""
    secrets = _environment_secrets()
    return {
        _scrub(str(key), secrets, is_digest=False): _redact_value(value, str(key), secrets)
        for key, value in mapping.items()
    }


def is_secret_key(key: str, value: object = None) -> bool:
    """Tell whether the name of a key says that its value is a secret."""
    words = _words(key)
    found = words & _SECRET_WORDS
    if not found:
        return False
    if found <= {"token"} and words & _PLAIN_TOKEN_WORDS:
        return False
    # A number or a switch is no token, but it can be a password.
    is_number = isinstance(value, (bool, int, float))
    return not (is_number and found <= {"token", "key"})


def _redact_value(value: Any, key: str, secrets: list[str]) -> Any:
    if value is None:
        return None
    if is_secret_key(key, value):
        return REMOVED
    match value:
        case Enum():
            return _redact_value(value.value, key, secrets)
        case Mapping():
            return {
                _scrub(str(inner), secrets, is_digest=False): _redact_value(item, str(inner), secrets)
                for inner, item in value.items()
            }
        case list() | tuple() | set() | frozenset():
            return [_redact_value(item, key, secrets) for item in value]
        case bool() | float():
            return value
        case int():
            return REMOVED if str(value) in secrets else value
        case _:
            return _scrub(str(value), secrets, is_digest=bool(_words(key) & _DIGEST_WORDS))


def _scrub(text: str, secrets: list[str], is_digest: bool) -> str:
    if text in secrets:
        return REMOVED
    for secret in secrets:
        if len(secret) >= _MIN_ENV_CHARS_INSIDE_TEXT:
            text = text.replace(secret, REMOVED)
    for pattern in _SECRET_VALUES:
        text = pattern.sub(REMOVED, text)
    return text if is_digest else _HEX_40.sub(REMOVED, text)


def _environment_secrets() -> list[str]:
    found = {
        value for name, value in os.environ.items() if len(value) >= _MIN_ENV_CHARS and is_secret_key(name)
    }
    # Longest first: one secret may be the beginning of another.
    return sorted(found, key=len, reverse=True)


def _words(key: str) -> set[str]:
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key)
    return set(re.split(r"[^a-z0-9]+", spaced.lower()))
