"""Tells bytes on disk that are as they were written from those that are not: records, whole files, parts of large ones.

What a run reads back from its cache goes through here, so that a flipped bit is found where it is first used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SEAL = "seal"
"""Key of a record's own digest."""
DIGEST_BYTES = 16
"""Of a part of a large file: a flipped bit is missed once in 2^128."""


def sealed_text(record: Mapping[str, Any]) -> str:
    """Return a record as JSON that ends with a digest of itself."""
    assert SEAL not in record, "a record has one seal"
    body = json.dumps(record, indent=1)
    digest = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({**record, SEAL: digest}, indent=1) + "\n"


def read_sealed(path: Path) -> dict[str, Any]:
    """Read a sealed record, without its seal.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not as it was written; says so in words.
    """
    try:
        text = path.read_text(encoding="utf-8")
        record = json.loads(text)
        record.pop(SEAL)
        whole = sealed_text(record) == text
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise ValueError(f"{path.name} is not as it was written")
    return dict(record)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def part_digest(*parts: bytes | memoryview) -> bytes:
    """Return the digest of a part of a file, given in pieces one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()[:DIGEST_BYTES]


def with_digest(data: bytes) -> bytes:
    """Return the bytes of a file with a digest of them at the end."""
    return data + part_digest(data)


def without_digest(data: bytes) -> bytes:
    """Return the bytes that with_digest was given.

    Raises:
        ValueError: They are not as they were written.
    """
    body = data[:-DIGEST_BYTES]
    if with_digest(body) != data:
        raise ValueError("it is not as it was written")
    return body
