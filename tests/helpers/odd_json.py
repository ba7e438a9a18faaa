"""JSON files as no program writes them, by seed: values of another kind, keys gone or there twice, huge numbers."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

OTHERS: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        0.5,
        2**70,
        -(2**63),
        10**400,
        1e308,
        "",
        "six",
        "\x00",
        "\ud800",
        [],
        {},
        [[]],
        {"": 0},
    ),
    *([None], ["a"] * 3, "../../etc", "1e400"),
)
KINDS = ("value", "gone", "renamed", "twice", "bytes", "huge", "deep", "whole")


def odd_json(text: bytes, rng: random.Random) -> bytes:
    """Return another file of the same tree."""
    kind = rng.choice(KINDS)
    if kind == "whole":
        return json.dumps(rng.choice([one for one in OTHERS if one != 10**400])).encode()
    if kind == "bytes":
        at = rng.randrange(len(text))
        return text[:at] + rng.choice([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x00", b"\xfe\xff"]) + text[at:]
    tree = json.loads(text)
    places = list(_places(tree))
    above, key = rng.choice(places)
    mark = f"mark-{rng.getrandbits(32)}"
    if kind in ("gone", "renamed", "twice") and not isinstance(above, dict):
        kind = "value"
    if kind == "gone":
        del above[key]
    elif kind == "renamed":
        above[rng.choice(["", "other", key + "x", "\x00"])] = above.pop(key)
    elif kind == "twice":
        above[mark] = rng.choice(OTHERS[:-4])
        return _dumped(tree).replace(json.dumps(mark), json.dumps(key)).encode()
    elif kind in ("huge", "deep"):
        above[key] = mark
        put = {
            "huge": rng.choice(["1e999", "-1e999", "9" * 5000, "NaN", "1e308"]),
            "deep": "[" * 3000 + "]" * 3000,
        }
        return _dumped(tree).replace(json.dumps(mark), put[kind]).encode()
    else:
        above[key] = rng.choice([one for one in OTHERS if one != 10**400])
    return _dumped(tree).encode()


def _dumped(tree: Any) -> str:
    return json.dumps(tree, indent=2)


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container with every key or index of it."""
    found = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(found):
        yield tree, key
        yield from _places(value)
