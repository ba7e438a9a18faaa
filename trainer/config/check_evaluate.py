"""Rules about benchmark tasks and the gate. Pure: whether a task exists is found out where tasks are loaded."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.data import DataConfig, Role
from trainer.config.gate import GateConfig, about_nothing, sets_about
from trainer.config.rule import Problem, must, said
from trainer.config.train import EvaluateConfig, ProbeChoice


def task_problems(evaluate: EvaluateConfig) -> Iterator[Problem]:
    """Yield every broken rule about benchmark tasks."""
    tasks = evaluate.tasks
    if evaluate.probe_dir is not None and evaluate.probes is ProbeChoice.none:
        yield must(
            "evaluate.probes", "auto or all with evaluate.probe_dir", "none", "Leave one of the two out."
        )
    if tasks.names and not evaluate.forgetting:
        yield must(
            "evaluate.forgetting",
            "true with evaluate.tasks.names",
            False,
            "Scores are kept in forgetting.json.",
        )
    if len(set(tasks.names)) < len(tasks.names):
        yield must("evaluate.tasks.names", "different names", ", ".join(tasks.names), "Name each once.")
    if tasks.num_fewshot is not None and tasks.num_fewshot < 0:
        yield must("evaluate.tasks.num_fewshot", "0 or more", tasks.num_fewshot, "Set 0 for none.")
    for key, least in (("limit", 1), ("batch_tokens", 1), ("max_length", 2)):
        value = getattr(tasks, key)
        if value is not None and value < least:
            yield must(f"evaluate.tasks.{key}", f"at least {least}", value, f"Set {least}, or leave it out.")


def gate_problems(gate: GateConfig, data: DataConfig, forgetting: bool) -> Iterator[Problem]:
    """Yield every broken rule about the gate; whether a source has text to hold out is seen in its store.

    Args:
        forgetting: Whether the base is compared with the tuned model, which is what the gate reads.
    """
    if gate.has_rules and not forgetting:
        yield must("evaluate.forgetting", "true with rules of `gate`", False, "Set evaluate.forgetting=true.")
    held_out = {
        name: source.role.value
        for name, source in data.sources.items()
        if data.validation_frac > 0 or source.role is Role.probe
    }
    has_target = any(source.role is Role.target for source in data.sources.values())
    for key, rule in gate.sets.items():
        if has_target and not sets_about(key, held_out):
            yield said(f"gate.sets.{key}", about_nothing(key, held_out))
        limits = {"max_rise_nats": rule.max_rise_nats, "min_drop_nats": rule.min_drop_nats}
        yield from _limit_problems(f"gate.sets.{key}", limits, "nats")
    for key, wanted in gate.tasks.items():
        limits = {name: getattr(wanted, name) for name in ("max_drop", "min_rise", "max_rise", "min_drop")}
        yield from _limit_problems(f"gate.tasks.{key}", limits, wanted.metric)


def _limit_problems(key: str, limits: dict[str, float | None], unit: str) -> Iterator[Problem]:
    if all(limit is None for limit in limits.values()):
        first = next(iter(limits))
        example = 0.05 if unit == "nats" else 0.02
        yield must(key, "a rule", "empty", f"Set {key}.{first}={example}.")
    for name, limit in limits.items():
        if limit is not None and not limit >= 0:
            yield must(f"{key}.{name}", "0 or more", limit, f"It is a size in {unit}.")
