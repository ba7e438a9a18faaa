"""Rules about what is learnt of a conversation. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.data import Format, SourceConfig
from trainer.config.learn import LearnConfig
from trainer.config.rule import Problem, must, problem

ROLES = ("assistant", "tool", "user", "system", "developer", "ipython")


def learn_problems(key: str, source: SourceConfig) -> Iterator[Problem]:
    """Yield every broken rule of the source whose configuration is at `key`."""
    learn = source.learn
    holds_chats = source.format is Format.chat or (source.format is Format.completion and source.as_chat)
    if not holds_chats and learn != LearnConfig():
        yield problem(
            f"{key}.learn",
            f"must be left as it is for sources without conversations, but is set, and format is "
            f"{source.format.value} instead. Remove it, or set {key}.format=chat.",
        )
    strangers = [role for role in learn.roles if role not in ROLES]
    if strangers or not learn.roles:
        yield must(
            f"{key}.learn.roles", f"one or more of {', '.join(ROLES)}", learn.roles, "Set [assistant]."
        )
