"""Damage to files, by seed: what disks, copies and hands do to bytes."""

from __future__ import annotations

import random
import re


def damage(whole: bytes, rng: random.Random) -> bytes:
    """Return other bytes: bits flipped, a part cut out or off, put in twice, or a word edited by hand."""
    while True:
        at = rng.randrange(len(whole))
        until = min(at + rng.choice((1, 2, 8, 64, 512)), len(whole))
        kind = rng.randrange(6)
        if kind == 0:
            changed = bytearray(whole)
            for _ in range(rng.choice((1, 1, 3))):
                changed[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
            found = bytes(changed)
        elif kind == 1:
            found = whole[:at]
        elif kind == 2:
            found = whole[:at] + whole[until:]
        elif kind == 3:
            found = whole[:until] + whole[at:]
        elif kind == 4:
            found = whole[:at] + bytes(rng.randrange(256) for _ in range(until - at)) + whole[until:]
        else:
            found = edited(whole, rng)
        if found != whole:
            return found


def edited(whole: bytes, rng: random.Random) -> bytes:
    """Return JSON with a key or a value that somebody has changed."""
    words = list(re.finditer(rb'"[^"]*"|-?\d+(\.\d+)?', whole))
    word = rng.choice(words)
    other = rng.choice(
        [b"null", b"true", b"-1", b"[]", b"{}", b'"x"', b"1e400", b"1e15", b'"\\u0000"', b'"NaN"']
    )
    return whole[: word.start()] + other + whole[word.end() :]
