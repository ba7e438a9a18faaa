"""A file of principles that answers are criticised or judged by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainer.config.yaml_text import plain
from trainer.errors import DataError

REVISE = "Rewrite the answer so that it heeds the critique. Reply with the new answer alone."


@dataclass(frozen=True, slots=True)
class Principle:
    """What an answer is looked at for, and how it is to be revised."""

    critique: str
    revision: str = REVISE


def read_principles(key: str, path: str) -> list[Principle]:
    """Read a file: YAML, a list of texts or of {critique, revision}; any other is a principle a line.

    Raises:
        DataError: It cannot be read, or holds no principle or something else.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"`{key}` must be a file of principles, but {path} cannot be read: {error}."
        ) from error
    if file.suffix in (".yaml", ".yml"):
        try:
            content = plain(text)
        except yaml.YAMLError as error:
            what = " ".join(str(error).split())
            raise DataError(
                f"`{key}` must be a YAML list of principles, but {path} is none: {what}."
            ) from error
        items = content if isinstance(content, list) else [] if content is None else [content]
    else:
        items = [line.strip() for line in text.splitlines()]
        items = [line for line in items if line and not line.startswith("#")]
    found = [_principle(item, key, path) for item in items]
    if not found:
        raise DataError(
            f"`{key}` must hold a principle, but {path} has none. Write one a line, or a YAML list of them."
        )
    return found


def _principle(item: Any, key: str, path: str) -> Principle:
    if isinstance(item, str) and item.strip():
        return Principle(item.strip())
    if isinstance(item, dict) and set(item) <= {"critique", "revision"} and item.get("critique"):
        told = {name: str(value).strip() for name, value in item.items() if value}
        return Principle(**told)
    raise DataError(
        f"`{key}` must be a list of texts or of {{critique, revision}}, but {path} has {item!r:.80} instead. Mend it."
    )
