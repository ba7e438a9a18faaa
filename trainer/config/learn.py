"""Config section for what is learnt of a conversation."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Turns(Enum):
    """Which of the assistant's turns are learnt."""

    all = "all"
    """All turns."""
    last = "last"
    """The last turn only."""


class Reasoning(Enum):
    """What becomes of the assistant's reasoning."""

    whole = "whole"
    """Refuse a template that leaves some out."""
    as_rendered = "as_rendered"
    """What the template renders; the rest is counted."""
    last = "last"
    """That of the last turn only."""
    drop = "drop"
    """None."""
    answer_only = "answer_only"
    """Rendered whole; what comes after it is learnt."""


class ToolCalls(Enum):
    """What becomes of conversations whose tool calls or results are wrong."""

    error = "error"
    """Stop, and say how many there are, why, and where the first is."""
    drop = "drop"
    """Leave them out; count them by cause, and name the first."""
    unchecked = "unchecked"
    """Learn them as they are."""


@dataclass
class LearnConfig:
    """What is learnt of a conversation.

    Turns with weight: 0, train: false or loss: false are never learnt; those of any role with 1 or true are, unless
    `turns` leaves them out. With data.values=[weight] a turn's weight may be any number of at least 0.
    """

    turns: Turns = Turns.all
    """`all` turns of the assistant, or the `last` only."""
    roles: list[str] = field(default_factory=lambda: ["assistant"])
    """Roles whose turns are learnt: assistant, tool, user, system or developer. Of the others than assistant only
    the words are."""
    end_mark: bool = True
    """Learn the mark that ends a turn, or the token that begins the next where a template writes none. Without it the
    model does not learn to stop."""
    reasoning: Reasoning = Reasoning.whole
    """`whole`: refuse reasoning that the chat template leaves out or cuts. `as_rendered`: learn what it renders, and
    count the rest. `last`: take reasoning out of all turns but the last of the assistant. `drop`: take it out of all.
    `answer_only`: render it whole, and learn what comes after it."""
    tool_calls: ToolCalls = ToolCalls.error
    """What becomes of rows with a call of a tool that they do not list, with arguments that its JSON schema refuses, or
    with a result that answers no call: `error` stops, `drop` leaves them out and counts them, `unchecked` looks at none
    of it. Worse answers of preferences are not looked at, the prompts before them are."""
