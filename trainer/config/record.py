"""What a run read, from its provenance.json, compared with what a later command is about to read.

Plain values only: what they are digests of is known where they are made.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.errors import DataError

FILE_NAME = "provenance.json"
WORDS = "PALIMPSEST_WORDS"
"""Variable with the words of the command line that a person gave, for the ranks that it starts."""


def read_inputs(run_dir: Path) -> dict[str, Any] | None:
    """Return what a run read: data, tokenizer and base; None where none has been recorded.

    Raises:
        DataError: The record cannot be read.
    """
    path = run_dir / FILE_NAME
    try:
        inputs = json.loads(path.read_text(encoding="utf-8"))["inputs"]
        return {"data": dict(inputs["data"]), "tokenizer": inputs["tokenizer"], "base": inputs["base"]}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} must say what the run read, but cannot be read: {error}. Bring it back from a copy; without it "
            "nobody can tell whether this is the data and the base of the run."
        ) from error


def refuse_other_inputs(
    run_dir: Path,
    data: Mapping[str, Mapping[str, Any]] | None = None,
    tokenizer: str | None = None,
    base: str | None = None,
) -> None:
    """Raise when what is about to be read is not what the run read; what is None is not compared.

    Sources that the run did not have are no matter: their numbers have a name of their own.

    Raises:
        DataError: Names everything that differs.
    """
    recorded = read_inputs(run_dir)
    if recorded is None:
        return
    problems = []
    if tokenizer is not None and tokenizer != recorded["tokenizer"]:
        problems.append(
            "the tokenizer or its chat template (`model.tokenizer`, `model.chat_template`, `model.chat_template_date`) "
            "has changed"
        )
    for name, now in (data or {}).items():
        if name in recorded["data"]:
            problems += _different_source(name, recorded["data"][name], now, bool(problems))
    if base is not None and recorded["base"] is not None and base != recorded["base"]:
        problems.append("the weights of the base (`model.path`) have changed")
    if problems:
        raise DataError(
            f"{run_dir} must be given the data and the model that it was trained with, but {'; '.join(problems)}. "
            "Bring back what the run read, or give another run_dir for a run of its own."
        )


def _different_source(
    name: str, before: Mapping[str, Any], now: Mapping[str, Any], is_explained: bool
) -> Iterator[str]:
    """Yield what differs of a source; a store that differs by its tokenizer alone is not named again."""
    if before["store"] == now["store"]:
        return
    if before["origin"] != now["origin"]:
        yield f"`data.sources.{name}` holds other data"
    keys = sorted(_different_keys(before["options"], now["options"]))
    if keys:
        yield f"`data.sources.{name}` is read with other options ({', '.join(keys)})"
    if before["origin"] == now["origin"] and not keys and not is_explained:
        yield f"`data.sources.{name}` is read with another tokenizer"


def _different_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for key in {**before, **now}:
        one, other = before.get(key), now.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from (f"{key}.{inner}" for inner in _different_keys(one, other))
        elif one != other:
            yield key
