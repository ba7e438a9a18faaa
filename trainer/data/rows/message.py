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

_NAMES = sorted(ROLES, key=lambda name: ROLES[name] != name)
_TAKEN = f"{', '.join(_NAMES[:-1])} or {_NAMES[-1]}"
SELDOM = frozenset(("chatgpt", "model", "bot", "observation", "function", "function_response"))
"""Those of them that are told of where they are met: in other data they are something else."""


ASIDE = frozenset(
    ("role", "from", "content", "value", "name", "id", "tool_call_id", "type", "recipient", "channel")
)
ASIDE |= {"timestamp", "date", "time", "model", "lang", "language"}
"""Keys of a turn whose text is not what is said in it."""
SAID_OTHERWISE = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
"""Keys of a turn that may stand without a content."""


def parse_message(raw: Any) -> Message:
    """Return a turn as {role, content, ...}.

    Raises:
        RowError: If it is none, or what it says stands under a key that is not read.
    """
    if not isinstance(raw, dict) or not ({"role", "from"} & raw.keys()):
        speaker = _speaker(raw) if isinstance(raw, dict) else None
        fix = MEND if speaker is None else f"Rename '{speaker}' to 'role' in these rows."
        raise RowError("hold messages of {role, content} or {from, value}", short(raw), fix)
    if (other := _text_elsewhere(raw)) is not None:
        wanted = "value" if "role" not in raw else "content"
        keys = ", ".join(map(str, raw))
        raise RowError(
            f"hold what a message says under the key '{wanted}'",
            f"a message with the keys [{keys}]",
            f"Rename '{other}' to '{wanted}' in these rows.",
        )
    said = raw.get("role", raw.get("from"))
    role = ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        raise RowError(f"hold messages of the roles {_TAKEN}", short(said), _role_fix(said))
    known = {"role", "from", "content", "value"}
    message: Message = {"role": role, "content": _content(raw.get("content", raw.get("value")))}
    message |= {key: value for key, value in raw.items() if key not in known and value is not None}
    if message.get("tool_calls") == []:
        del message["tool_calls"]
    return message


def _role_fix(said: Any) -> str:
    """Return what to do about a role that is not known: one that only its letters make another is to be written so."""
    plain = said.strip().lower() if isinstance(said, str) else ""
    return f"Write it '{plain}' in these rows." if plain in ROLES else MEND


def _speaker(raw: dict[str, Any]) -> str | None:
    """Return the key of a turn that has no role and says whose it is under another name."""
    return next((key for key, value in raw.items() if isinstance(value, str) and value in ROLES), None)


def _text_elsewhere(raw: dict[str, Any]) -> str | None:
    """Return the key under which a turn without a content says something; None where it has one, or says nothing."""
    has_content = raw.get("content") is not None or raw.get("value") is not None
    if has_content or any(raw.get(key) for key in SAID_OTHERWISE):
        return None
    texts = {key: value for key, value in raw.items() if key not in ASIDE and _is_text(value)}
    return max(texts, key=lambda key: len(str(texts[key])), default=None)


def _is_text(value: Any) -> bool:
    """Say whether a value is a text, or a list of texts or of parts with one."""
    if not isinstance(value, list):
        return isinstance(value, str) and bool(value.strip())
    return any(_is_text(part.get("text") if isinstance(part, dict) else part) for part in value)


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
