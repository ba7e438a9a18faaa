"""Reads tool calls out of what a model said, in the forms that chat templates write them. Pure.

Marks of an answer decide the form: <tool_call> around JSON or XML (Qwen, Hermes, GLM, MiniMax), [TOOL_CALLS]
(Mistral), tool_call_begin (DeepSeek, Kimi), to=functions.NAME (gpt-oss); without any, all of it is JSON (Llama) or
Python (Llama 4, OLMo). Half-readable answers are unreadable: who runs calls would have to guess.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

NAMES, ARGUMENTS = ("name", "tool_name"), ("arguments", "parameters")
BLOCK = re.compile(
    r"<(?P<tag>\|?(?:\w+:)?(?:tool_calls?|functions?_calls?|functioncall)\|?)>(?P<body>.*?)(?:<\|?/(?P=tag)>|<\|/tool_calls?\|>|$)",
    re.DOTALL,
)
FUNCTION = re.compile(r"<function=(?P<name>[^>]+)>(?P<body>.*?)(?:</function>|$)", re.DOTALL)
PARAMETER = re.compile(r"<parameter=(?P<key>[^>]+)>(?P<value>.*?)</parameter>", re.DOTALL)
INVOKE = re.compile(r'<invoke name="(?P<name>[^"]+)">(?P<body>.*?)(?:</invoke>|$)', re.DOTALL)
INVOKED = re.compile(r'<parameter name="(?P<key>[^"]+)">(?P<value>.*?)</parameter>', re.DOTALL)
KEYED = re.compile(r"<arg_key>(?P<key>.*?)</arg_key>\s*<arg_value>(?P<value>.*?)</arg_value>", re.DOTALL)
BETWEEN = re.compile(
    r"<[|\uff5c]tool[_\u2581]call[_\u2581]begin[|\uff5c]>(?P<body>.*?)"
    r"(?:<[|\uff5c]tool[_\u2581]call[_\u2581]end[|\uff5c]>|$)",
    re.DOTALL,
)
SEPARATOR = re.compile(r"<[|\uff5c]tool[_\u2581](?:sep|call[_\u2581]argument[_\u2581]begin)[|\uff5c]>")
ROUTED = re.compile(
    r"to=functions\.(?P<name>[\w.-]+)[^{]*<\|message\|>(?P<body>.*?)(?:<\|call\|>|<\|end\|>|$)", re.DOTALL
)
LISTED = re.compile(r"\[TOOL_CALLS\](?P<body>.*?)(?=\[TOOL_CALLS\]|$)", re.DOTALL)
NAMED = re.compile(r"\s*(?P<name>[\w.-]+)(?:\[CALL_ID\][^\[]*)?\[ARGS\](?P<body>.*)", re.DOTALL)
SPECIAL = re.compile(r"<\|[^<>|\s]{1,60}\|>|</s>|<(?:end_of_turn|eos)>")
FENCE = re.compile(r"\A```(?:json|python)?\s*\n(.*?)\n?```\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class SpokenCall:
    """A call of a tool."""

    name: str
    arguments: dict[str, Any]


class _Unreadable(Exception):
    pass


def read_calls(text: str) -> list[SpokenCall]:
    """Return the calls of an answer; none where there is none, or one of them cannot be read.

    Args:
        text: What a model said, special tokens included.
    """
    said = without_reasoning(text)
    try:
        return list(_read(said))
    except (_Unreadable, RecursionError):
        return []


def is_same(one: Sequence[SpokenCall], other: Sequence[SpokenCall]) -> bool:
    """Tell whether two turns call the same tools with the same arguments, in any order.

    Arguments are compared as JSON values: the order of keys and the way a number is written mean nothing, true is no 1.
    """
    return Counter(map(_canonical, one)) == Counter(map(_canonical, other))


def has_same_names(one: Sequence[SpokenCall], other: Sequence[SpokenCall]) -> bool:
    """Tell whether two turns call the same tools, in any order."""
    return Counter(call.name for call in one) == Counter(call.name for call in other)


def _canonical(call: SpokenCall) -> str:
    return json.dumps([call.name, _plain(call.arguments)], sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def without_reasoning(text: str) -> str:
    """Return what is said behind reasoning; nothing where reasoning does not end."""
    for opening, closing in (("<think>", "</think>"), ("[THINK]", "[/THINK]")):
        if closing in text:
            text = text.rpartition(closing)[2]
        elif opening in text:
            return text.partition(opening)[0]  # it never came to an answer
    return text


def _read(said: str) -> Iterator[SpokenCall]:
    if found := [*BLOCK.finditer(said)]:
        for block in found:
            yield from _block(block["body"].strip())
    elif "[TOOL_CALLS]" in said:
        for block in LISTED.finditer(said):
            yield from _listed(block["body"].strip())
    elif found := [*BETWEEN.finditer(said)]:
        for block in found:
            yield _separated(block["body"].strip())
    elif found := [*ROUTED.finditer(said)]:
        for block in found:
            yield SpokenCall(block["name"], _object(block["body"].strip()))
    else:
        yield from _block(said.strip())


def _block(body: str) -> Iterator[SpokenCall]:
    """Read what stands between marks, or all of an answer without any."""
    body = SPECIAL.sub("", body).strip()
    fenced = FENCE.match(body)
    body = fenced[1].strip() if fenced else body
    if body[:1] in ("{", "["):
        try:
            yield from _values(body)
        except ValueError:
            yield from _python(body)
        return
    for form, inner in ((FUNCTION, PARAMETER), (INVOKE, INVOKED)):
        if found := [*form.finditer(body)]:
            yield from (SpokenCall(one["name"].strip(), _keyed(inner, one["body"])) for one in found)
            return
    name, bracket, rest = body.partition("<arg_key>")
    if bracket and re.fullmatch(r"[\w.-]+", name.strip()):
        yield SpokenCall(name.strip(), _keyed(KEYED, bracket + rest))
    elif re.fullmatch(r"[\w.-]+\(.*\)", body, re.DOTALL):
        yield from _python(f"[{', '.join(body.splitlines())}]")
    else:
        raise _Unreadable


def _listed(body: str) -> Iterator[SpokenCall]:
    if named := NAMED.fullmatch(body):
        yield SpokenCall(named["name"], _object(named["body"]))
    else:
        yield from _block(body)


def _separated(body: str) -> SpokenCall:
    *before, last = SEPARATOR.split(body)
    if not before:
        raise _Unreadable
    if before[-1].strip() == "function":  # NAME, and the arguments in a block of code
        name, _, rest = last.strip().partition("\n")
    else:
        name, rest = before[-1], last
    fenced = FENCE.match(rest.strip())
    name = re.sub(r"\A(?:functions\.)?(.*?)(?::\d+)?\Z", r"\1", name.strip())
    return SpokenCall(name, _object(fenced[1] if fenced else rest.strip()))


def _values(body: str) -> Iterator[SpokenCall]:
    """Read calls from JSON values one after the other, with nothing but separators between them."""
    decoder, at = json.JSONDecoder(), 0
    while at < len(body):
        value, at = decoder.raw_decode(body, at)
        at += len(body[at:]) - len(body[at:].lstrip(" \t\r\n;,"))
        for call in value if isinstance(value, list) else [value]:
            yield _call(call)


def _call(value: Any) -> SpokenCall:
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict):
        raise _Unreadable
    name = next((value[key] for key in NAMES if key in value), None)
    arguments = next((value[key] for key in ARGUMENTS if key in value), None)
    if not isinstance(name, str) or not name or all(key not in value for key in ARGUMENTS):
        raise _Unreadable
    if arguments is None:
        arguments = {}
    return SpokenCall(name, _object(arguments) if isinstance(arguments, str) else _as_object(arguments))


def _object(text: str) -> dict[str, Any]:
    try:
        return _as_object(json.loads(SPECIAL.sub("", text).strip() or "{}"))
    except ValueError:
        raise _Unreadable from None


def _as_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Unreadable
    return value


def _keyed(form: re.Pattern[str], body: str) -> dict[str, Any]:
    """Return arguments that are written without quotes: JSON where it is JSON, else text."""
    if form.sub("", body).strip():
        raise _Unreadable  # something stands beside them
    found = {}
    for one in form.finditer(body):
        value = one["value"].strip("\n")
        try:
            found[one["key"].strip()] = json.loads(value)
        except ValueError:
            found[one["key"].strip()] = value
    return found


def _python(body: str) -> Iterator[SpokenCall]:
    """Read calls as Python writes them, with keywords and literals alone."""
    try:
        tree = ast.parse(body, mode="eval").body
        calls = tree.elts if isinstance(tree, ast.List) else [tree]
        for call in calls:
            if not isinstance(call, ast.Call) or call.args:
                raise _Unreadable
            arguments = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
            yield SpokenCall(ast.unparse(call.func), json.loads(json.dumps(arguments)))
    except (SyntaxError, ValueError, TypeError, MemoryError):
        raise _Unreadable from None
