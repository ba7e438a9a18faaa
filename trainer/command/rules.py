"""Which rules of a configuration a command is held to: one list for all that ask."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.command.usage import SUBCOMMANDS
from trainer.config.check import find_problems
from trainer.config.rule import Problem, must
from trainer.config.schema import RunConfig
from trainer.config.synthetic import QuoteSource
from trainer.forecast.step_time import DEVICES, find_device

READ = {
    "doctor": ("cluster", "run_dir"),
    "export": ("export",),
    "plan data": ("model", "data", "plan", "evaluate.probe_dir"),
    "replay generate": ("model", "cluster", "replay.generate"),
    **{f"data {verb}": ("model", "synthetic") for verb in SUBCOMMANDS["data"]},
}
"""Sections and keys that a command reads of the configuration, where it does not read all."""


def broken_rules(config: RunConfig, command: str, world_size: int | None = None) -> list[Problem]:
    """Return the broken rules that a command refuses.

    A plan is held to all that a training is, but for what was not given yet: data, or how long to train. A preparation
    is not asked how long.

    Args:
        world_size: Ranks of the run where they are known.
    """
    found = list(find_problems(config, world_size))
    if command == "plan":
        told = [rule for rule in found if not rule.is_open or rule.key == "model"]
        return told if any(rule.key == "plan.gpu" for rule in told) else [*told, *_gpu_problems(config)]
    if command == "prepare":  # which needs no length
        found = [rule for rule in found if not (rule.is_open and rule.key == "train")]
    only = READ.get(command)
    if not asks_model(config, command):
        only = tuple(section for section in only or () if section != "model")
    if command == "export" and config.asks_gate_to_export:
        only = ("export", "gate")
    return [rule for rule in found if only is None or rule.is_in(only)]


def asks_model(config: RunConfig, command: str) -> bool:
    """Tell whether a command has to do with a model: `data raft` only where that writes the reasoning."""
    return command != "data raft" or config.synthetic.raft.quote is QuoteSource.model


def _gpu_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield a problem where a plan is asked for a kind of GPU whose time is not known."""
    name = config.plan.gpu
    if name is not None and find_device(name) is None:
        known = ", ".join(device.name for device in DEVICES)
        fix = "Leave it out: memory is forecast without it, for plan.gpu_gib."
        yield must("plan.gpu", f"a GPU that times are known of ({known})", name, fix)
