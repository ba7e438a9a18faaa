"""Which rules of a configuration a command is held to: one list for all that ask."""

from __future__ import annotations

from trainer.config.check import find_problems
from trainer.config.rule import Problem
from trainer.config.schema import RunConfig

READ = {
    "doctor": ("cluster", "run_dir"),
    "export": ("export",),
    "replay generate": ("model", "cluster", "replay.generate"),
}
"""Sections and keys that a command reads of the configuration, where it does not read all."""


def broken_rules(config: RunConfig, command: str, world_size: int | None = None) -> list[Problem]:
    """Return the broken rules that a command refuses.

    A plan is held to all that a training is, but for what was not given yet: data, or how long to train.

    Args:
        world_size: Ranks of the run where they are known.
    """
    found = list(find_problems(config, world_size))
    if command == "plan":
        return [rule for rule in found if not rule.is_open or rule.key == "model"]
    only = READ.get(command)
    if command == "export" and config.asks_gate_to_export:
        only = ("export", "gate")
    return [rule for rule in found if only is None or rule.is_in(only)]
