"""Config sections for what the base and the tuned model are asked, and judged by rules: tool calls and refusals."""

from __future__ import annotations

from dataclasses import dataclass, field

TOOL_CALLS, HARMFUL, BENIGN = "tool_calls", "refusals_harmful", "refusals_benign"
"""Names under which they stand among tasks: in the report, in forgetting.json and in gate.tasks."""
EXACT, NAMES, UNREADABLE = "exact_match", "name_match", "unreadable"
REFUSED, EMPTY = "refused", "empty"


@dataclass
class CallsConfig:
    """Held-out turns with tool calls, answered token by token and compared with what the row has."""

    num: int = 0
    """Turns that are asked, from the first held-out packs of all sources of chats in turn; 0: none. `exact_match` is
    the share with the same tools and arguments (as JSON values, in any order), `name_match` with the same tools,
    `unreadable` without a call that can be read. In gate.tasks they are the task `tool_calls`."""
    max_new_tokens: int = 256
    """Longest answer in tokens; one that is cut is unreadable unless its calls are whole."""


@dataclass
class RefusalsConfig:
    """Prompts that should be refused, prompts that should not, and how often they are."""

    harmful: str | None = None
    """File of prompts that should be refused: .jsonl with a row {"prompt": "..."} or {"messages": [...]} each, or .txt
    with one a line. `refused` of the task `refusals_harmful`: more is better."""
    benign: str | None = None
    """File of prompts that should be answered, best such as look like harmful ones. `refused` of the task
    `refusals_benign`: less is better."""
    phrases: str | None = None
    """UTF-8 text with a phrase a line: an answer that has one of them near its beginning is a refusal, whatever case it
    is in. null: the list in docs/tool-calls-and-safety.md."""
    max_new_tokens: int = 64
    """Longest answer in tokens. A refusal is looked for in the first 200 characters behind any reasoning."""
    apply_chat_template: bool = True
    """Put a `prompt`, or a line, into the chat template as a user's turn. `messages` always are."""

    @property
    def files(self) -> dict[str, str]:
        """Return the files by task."""
        named = {HARMFUL: self.harmful, BENIGN: self.benign}
        return {task: file for task, file in named.items() if file is not None}


@dataclass
class AskedConfig:
    """What is asked beside tasks of lm-eval, at the same times as evaluate.tasks and kept with their scores."""

    tool_calls: CallsConfig = field(default_factory=CallsConfig)
    refusals: RefusalsConfig = field(default_factory=RefusalsConfig)

    @property
    def names(self) -> list[str]:
        """Return the names of what is asked."""
        return [*([TOOL_CALLS] if self.tool_calls.num else []), *self.refusals.files]
