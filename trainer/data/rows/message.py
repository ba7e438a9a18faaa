"""Turns one turn of a conversation, of any of the usual layouts, into the layout that chat templates take. Pure."""

from __future__ import annotations

from typing import Any

from trainer.data.types import Message, RowError

MEND = "Mend or remove these rows."
ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
    "ipython": "ipython",
}

SELDOM = frozenset(("chatgpt", "model", "bot", "observation", "function", "function_response"))
"""Those of them that are told of where they are met: in other data they are something else."""


def parse_message(raw: Any) -> Message:
    """Return a turn as {role, content, ...}.

    Raises:
        RowError: If it is none.
    """
    if not isinstance(raw, dict) or not ({"role", "from"} & raw.keys()):
        raise RowError("hold messages of {role, content} or {from, value}", short(raw), MEND)
    said = raw.get("role", raw.get("from"))
    role = ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        raise RowError("hold messages of the roles user, assistant, system or tool", repr(said), MEND)
    known = {"role", "from", "content", "value"}
    message: Message = {"role": role, "content": _content(raw.get("content", raw.get("value")))}
    message |= {key: value for key, value in raw.items() if key not in known and value is not None}
    if message.get("tool_calls") == []:
        del message["tool_calls"]
    return message


def _content(raw: Any) -> str:
    if raw is None:
        return ""
    if isinstance(raw, str):
        return valid_text(raw)
    if isinstance(raw, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in raw):
        return valid_text("".join(str(part.get("text") or "") for part in raw))
    raise RowError("hold messages whose content is text", short(raw), MEND)


def valid_text(text: str) -> str:
    """Return a text that can be encoded.

    Raises:
        RowError: If it cannot.
    """
    # JSON can spell half a surrogate pair, which is no character and which no tokenizer takes.
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RowError("hold valid Unicode text", short(text), MEND) from None
    return text


def short(value: Any) -> str:
    """Return a value as messages quote it."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
