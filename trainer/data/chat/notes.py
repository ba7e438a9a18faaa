"""What was converted, left out or lost in the conversations of a source, in words."""

from __future__ import annotations

from collections.abc import Mapping

NOTES = {
    "other_roles": "turns of the roles bot, model, chatgpt, function or observation, read as the assistant or a tool",
    "function_calls": "turns with the old function_call, read as tool_calls",
    "flat_calls": "tool calls without a function inside, read as one",
    "null_arguments": "tool calls without arguments, read as {}",
    "calls_checked": "tool calls checked against the tools of their rows",
    "calls_unlisted": "conversations with tool calls and no list of tools: names and arguments are not checked",
    "text_arguments": "conversations whose call arguments the chat template takes as JSON text",
    "reasoning_moved": "conversations whose reasoning the chat template takes under another key",
    "developer_as_system": "conversations with developer turns, handed to the chat template as system turns",
    "reasoning_dropped": "turns without their reasoning, by learn.reasoning",
    "reasoning_lost": "turns whose reasoning the chat template leaves out or cuts",
    "extras_lost": "turns with keys that the chat template does not render",
    "empty_answers": "empty turns of the assistant, not learnt",
    "unmarked_ends": "last turns without a mark that ends them: the model does not learn to stop there",
    "joined_parts": "turns whose content is a list of texts, joined with nothing between",
    "joined_turns": "turns joined with the one before them, of the same speaker",
    "cut_prompts": "rows whose text is cut where the answer begins, as tokens would reach over it",
    "quoted_tokens": "conversations that spell out special tokens, encoded as text",
}
"""Counts that are told, in the order of telling."""


def describe_chats(counts: Mapping[str, int]) -> list[str]:
    """Return a phrase for each count that is not 0."""
    return [f"{counts[key]:,} {phrase}" for key, phrase in NOTES.items() if counts.get(key)]
