"""Rules about what is learnt of a conversation. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.data import SourceConfig
from trainer.config.learn import LearnConfig, Reasoning
from trainer.config.rule import Problem, must, problem

ROLES = ("assistant", "tool", "user", "system", "developer", "ipython")


def learn_problems(key: str, source: SourceConfig) -> Iterator[Problem]:
    """Yield every broken rule of the source whose configuration is at `key`."""
    learn = source.learn
    if not source.holds_chats and learn != LearnConfig():
        yield problem(
            f"{key}.learn",
            f"must be left as it is for sources without conversations, but is set, and format is "
            f"{source.format.value} instead. Remove it, or set {key}.format=chat.",
        )
    if source.holds_preferences and learn.reasoning is Reasoning.answer_only:
        # What is not learnt of an answer would stand between the shared prompt and what is.
        rule = f"another than answer_only for format={source.format.value}, whose answers are weighed whole"
        yield must(f"{key}.learn.reasoning", rule, learn.reasoning.value, "Set whole, drop or last.")
    strangers = [role for role in learn.roles if role not in ROLES]
    if strangers or not learn.roles:
        yield must(
            f"{key}.learn.roles", f"one or more of {', '.join(ROLES)}", learn.roles, "Set [assistant]."
        )
