"""A file of prompts that a person wrote, read whole and checked row by row. Loads no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.during import AnswersConfig
from trainer.errors import ConfigError

PROMPT_FILE = "evaluate.during.samples.file"


@dataclass(frozen=True, slots=True)
class WrittenPrompt:
    """One row: text to go on with, or the turns of a conversation to be answered."""

    text: str
    messages: list[dict[str, Any]]
    """Empty where it is text."""


def read_prompts(options: AnswersConfig) -> list[WrittenPrompt]:
    """Return the first `num` prompts of the file, all of them where it is 0; none without a file.

    Raises:
        ConfigError: The file cannot be read, or a row is no prompt; names the line.
    """
    if options.file is None:
        return []
    found = read_prompt_file(PROMPT_FILE, options.file, options.apply_chat_template)
    if len(found) < options.num:
        raise ConfigError(
            f"`{PROMPT_FILE}` must hold at least {options.num} prompts, but {options.file} has {len(found)} instead. "
            "Add some, or set evaluate.during.samples.num=0 for all of them."
        )
    return found[: options.num or None]


def read_prompt_file(key: str, file: str, as_chat: bool) -> list[WrittenPrompt]:
    """Return the prompts of a file, at least one.

    Args:
        key: That names the file, for errors.
        as_chat: Make a user's turn of a text.
    Raises:
        ConfigError: The file cannot be read or is empty, or a row is no prompt; names the line.
    """
    try:
        found = _read(Path(file), as_chat)
    except _Unfit as error:
        raise ConfigError(f"`{key}` must be a file of prompts, but {error}") from error
    if not found:
        raise ConfigError(f"`{key}` must hold at least 1 prompt, but {file} has none. Add some.")
    return found


class _Unfit(Exception):
    pass


def _read(path: Path, as_chat: bool) -> list[WrittenPrompt]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise _unfit(path, f"cannot be read ({error.strerror})", "Check the path.") from error
    except UnicodeDecodeError as error:
        raise _unfit(path, "is not UTF-8", "Convert it.") from error
    is_text = path.suffix == ".txt"
    found = [
        WrittenPrompt(line, []) if is_text else _row(path, number, line, as_chat)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    return [WrittenPrompt("", [_turn(prompt.text)]) for prompt in found] if is_text and as_chat else found


def _row(path: Path, number: int, line: str, as_chat: bool) -> WrittenPrompt:
    where = f"{path}:{number}"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _unfit(where, "is not one JSON object", "Mend that line.") from error
    keys = {"prompt", "messages"} & set(row) if isinstance(row, dict) else set()
    if len(keys) != 1:
        raise _unfit(where, "has not exactly one of `prompt` and `messages`", "Give one of them.")
    if keys == {"prompt"}:
        text = row["prompt"]
        if not isinstance(text, str) or not text.strip():
            raise _unfit(where, "has a `prompt` that is no text", "Write one.")
        return WrittenPrompt("", [_turn(text)]) if as_chat else WrittenPrompt(text, [])
    turns = row["messages"]
    if not isinstance(turns, list) or not turns or not all(_is_turn(turn) for turn in turns):
        raise _unfit(where, "has `messages` that are no list of turns with role and content", "Mend them.")
    if turns[-1]["role"] == "assistant":
        raise _unfit(where, "ends with an answer", "Let it end with what is to be answered.")
    return WrittenPrompt("", turns)


def _turn(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and isinstance(turn.get("role"), str) and turn.get("content") is not None


def _unfit(where: Path | str, what: str, fix: str) -> _Unfit:
    return _Unfit(f"{where} {what}. {fix}")
