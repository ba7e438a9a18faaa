"""What a conversation has that not every one has: a sample of each is shown. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.learn import LearnConfig, Reasoning
from trainer.data.chat.settle import REASONING
from trainer.data.types import ChatDocument, Document


def traits_of(document: Document, learn: LearnConfig) -> tuple[str, ...]:
    """Return the traits of a settled conversation in words; none of another document."""
    return tuple(_traits(document, learn)) if isinstance(document, ChatDocument) else ()


def _traits(document: ChatDocument, learn: LearnConfig) -> Iterator[str]:
    roles = {message["role"] for message in document.messages}
    if document.tools:
        yield "tools"
    if any(message.get("tool_calls") for message in document.messages):
        yield "tool calls"
    if "tool" in roles:
        yield "answers of tools"
    if learn.reasoning is not Reasoning.drop and any(
        message.get(REASONING, "").strip() for message in document.messages
    ):
        yield "reasoning"
    if roles & {"system", "developer"}:
        yield "a system turn"
