"""Checks the tool calls of a settled conversation: names, arguments by their JSON schema, results by their ids. Pure.

Nothing is fetched: a schema that refers to another document is told as one that cannot be checked.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from trainer.config.learn import ToolCalls
from trainer.data.rows.message import short
from trainer.data.types import ChatDocument, Message, RowDropped, RowError

SCHEMAS = ("parameters", "input_schema", "inputSchema")
"""Where a tool's schema stands: as OpenAI, as Anthropic and as MCP writes it."""
RESULTS = ("tool", "ipython")
"""Roles that say what a tool answered."""
FIX = (
    "Mend or remove these rows, or set learn.tool_calls of the source: drop leaves them out and counts them, unchecked "
    "learns them as they are."
)
NULLS = "Nulls of keys that a call has not come from tables: keep arguments as JSON text there. "
KEPT_NULLS = ("const", "default")
"""Keywords of JSON Schema whose value may be null."""


class CallError(RowError):
    """A conversation whose tool calls or results are wrong."""

    def __init__(self, cause: str, value: str, hint: str = "") -> None:
        super().__init__(CAUSES[cause], value, f"{hint}{FIX}")
        self.cause = cause


CAUSES = {
    "bad_schemas": "list tools whose parameters are a JSON schema that can be checked by itself",
    "unknown_tools": "call only tools that they list",
    "no_object_calls": "have tool calls whose arguments are a JSON object",
    "missing_arguments": "have tool calls with every required argument",
    "bad_arguments": "have tool calls whose arguments satisfy the tool's JSON schema",
    "repeated_calls": "have tool calls of one turn with different ids",
    "unasked_results": "have results of tools that answer a call before them",
    "unanswered_calls": "have a result for every call that the conversation goes on after",
}
"""The rule of each cause, as it is counted."""


def check_calls(document: ChatDocument, checks: ToolCalls, counts: Counter[str]) -> None:
    """Raise where a settled conversation has a tool call or a result that its own row contradicts.

    Counts:
        calls_unlisted: conversations with calls whose row lists no tools, so that names and arguments are not checked;
        calls_checked: calls whose name and arguments were.

    Raises:
        CallError: Says what is wrong with the first of them.
        RowDropped: The same, where such rows are left out.
    """
    if checks is ToolCalls.unchecked:
        return
    try:
        _check(document, counts)
    except CallError as error:
        if checks is ToolCalls.drop:
            raise RowDropped(error.cause, error.value) from None
        raise


def _check(document: ChatDocument, counts: Counter[str]) -> None:
    listed = listed_tools(document.tools or [])
    calls = [call for message in document.messages for call in message.get("tool_calls", [])]
    for call in calls:
        _check_arguments(call["function"])
        if listed:
            _check_call(call["function"], listed)
            counts["calls_checked"] += 1
    if calls and not listed:
        counts["calls_unlisted"] += 1
    _check_results(document.messages)


def listed_tools(tools: list[Any]) -> dict[str, list[Any]]:
    """Return the schemas of the tools of a row, by name; null for a tool that says nothing of its arguments.

    Raises:
        CallError: If one is no JSON schema.
    """
    listed: dict[str, list[Any]] = {}
    for tool in tools:
        inner = tool.get("function") if isinstance(tool.get("function"), dict) else tool
        if not isinstance(inner.get("name"), str):
            continue  # one that its host runs, such as a web search
        given = next((inner[key] for key in SCHEMAS if inner.get(key) is not None), None)
        schema = None if given is None else _without_nulls(_parsed(inner["name"], given))
        if schema is not None and (why := _why_no_schema(json.dumps(schema))) is not None:
            raise CallError("bad_schemas", f"the tool '{inner['name']}', {why}")
        listed.setdefault(inner["name"], []).append(schema)
    return listed


def _parsed(name: str, given: Any) -> dict[str, Any]:
    schema = given
    if isinstance(given, str):
        try:
            schema = json.loads(given)
        except ValueError:
            schema = None
    if not isinstance(schema, dict):
        raise CallError("bad_schemas", f"the tool '{name}', whose parameters are {short(given)}")
    return schema


def _without_nulls(schema: Any) -> Any:
    """Return a schema without the keys that a table gave every row because another has them."""
    if isinstance(schema, list):
        return [_without_nulls(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: inner if key in KEPT_NULLS else _without_nulls(inner)
        for key, inner in schema.items()
        if inner is not None or key in KEPT_NULLS
    }


@functools.lru_cache(maxsize=4096)
def _why_no_schema(text: str) -> str | None:
    """Say why parameters are no JSON schema of an object; None where they are."""
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    schema = json.loads(text)
    kind = validator_for(schema, default=_usual())
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        place = "".join(f".{part}" for part in error.absolute_path)
        return f"whose parameters{place} break JSON Schema: {_brief(error.message)}"
    if schema and not schema.keys() & (kind.META_SCHEMA.get("properties", {}).keys() | _vocabulary(kind)):
        # Any name is allowed in a schema, and says nothing: arguments themselves in its place would pass all.
        return f"whose parameters have no keyword of JSON Schema, but the keys {short(sorted(schema))}"
    return None


@functools.cache
def _usual() -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator


def _vocabulary(kind: Any) -> set[str]:
    return {*kind.VALIDATORS, "$defs", "definitions", "title", "description", "default", "$schema", "$id"}


@functools.lru_cache(maxsize=4096)
def _validator(text: str) -> Any:
    from jsonschema.validators import validator_for
    from referencing import Registry

    schema = json.loads(text)
    # Without a registry of ours, a $ref to an address would be fetched.
    return validator_for(schema, default=_usual())(schema, registry=Registry())


def _check_arguments(function: dict[str, Any]) -> None:
    arguments = function["arguments"]
    if not isinstance(arguments, dict):
        raise CallError("no_object_calls", f"the call of '{function['name']}' with {short(arguments)}")


def _check_call(function: dict[str, Any], listed: dict[str, list[Any]]) -> None:
    name = function["name"]
    if name not in listed:
        raise CallError("unknown_tools", f"the call of '{name}' among the tools {short(sorted(listed))}")
    faults = [_fault(name, function["arguments"], schema) for schema in listed[name]]
    if all(faults):
        first = faults[0]
        assert first is not None
        raise first


def _fault(name: str, arguments: dict[str, Any], schema: Any) -> CallError | None:
    """Return what is wrong with the arguments of a call; None where they satisfy the schema."""
    if schema is None:
        return None
    from jsonschema.exceptions import best_match
    from referencing.exceptions import Unresolvable

    try:
        found = best_match(_validator(json.dumps(schema)).iter_errors(arguments))
    except (Unresolvable, RecursionError) as error:
        why = "refers to itself without end" if isinstance(error, RecursionError) else f"refers to {error}"
        return CallError("bad_schemas", f"the tool '{name}', whose schema {_brief(why)}")
    if found is None:
        return None
    place = "".join(f"[{part!r}]" for part in found.absolute_path)
    value = f"the call of '{name}', whose arguments{place} break it: {_brief(found.message)}"
    if found.validator == "required":
        return CallError("missing_arguments", value)
    return CallError("bad_arguments", value, NULLS if found.instance is None else "")


def _brief(text: str) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= 120 else f"{one_line[:117]}..."


def _check_results(messages: list[Message]) -> None:
    """Compare results with the calls of the last turn that has any, by id, and by number where a call has no id."""
    open_calls: list[dict[str, Any]] = []
    has_calls = False
    for turn, message in enumerate(messages, 1):
        if message["role"] in RESULTS:
            if has_calls:
                _take_result(message, open_calls, turn)
            elif message.get("tool_call_id") is not None:
                raise CallError(
                    "unasked_results", f"turn {turn} that answers {short(message['tool_call_id'])}"
                )
            continue
        if message["role"] == "assistant":
            for call in _with_id(open_calls):
                raise CallError(
                    "unanswered_calls", f"no result of the call {short(call['id'])} before turn {turn}"
                )
            open_calls = list(message.get("tool_calls", []))
            has_calls = has_calls or bool(open_calls)
            ids = [call["id"] for call in _with_id(open_calls)]
            if len(set(map(str, ids))) < len(ids):
                raise CallError("repeated_calls", f"the ids {short(ids)} in turn {turn}")


def _with_id(calls: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    return (call for call in calls if call.get("id") not in (None, ""))


def _take_result(message: Message, open_calls: list[dict[str, Any]], turn: int) -> None:
    """Take the call that a result answers out of the open ones."""
    given = message.get("tool_call_id")
    with_id = [*_with_id(open_calls)]
    if given in (None, "") or (open_calls and not with_id):
        found = open_calls[0] if open_calls else None
    else:
        found = next((call for call in with_id if call["id"] == given), None)
    if found is None:
        what = "an id that no open call has" if given not in (None, "") else "no call is open"
        raise CallError("unasked_results", f"turn {turn}, a result for {short(given)}: {what}")
    open_calls.remove(found)
