"""Rules about benchmark tasks and the gate. Pure: whether a task exists is found out where tasks are loaded."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.asked import AskedConfig
from trainer.config.data import DataConfig, Role
from trainer.config.gate import GateConfig, about_nothing, sets_about
from trainer.config.objective import ObjectiveConfig, ObjectiveKind
from trainer.config.rule import Problem, must, said
from trainer.config.train import EvaluateConfig, ProbeChoice


def task_problems(evaluate: EvaluateConfig) -> Iterator[Problem]:
    """Yield every broken rule about benchmark tasks."""
    tasks = evaluate.tasks
    if evaluate.probe_dir is not None and evaluate.probes is ProbeChoice.none:
        yield must(
            "evaluate.probes", "auto or all with evaluate.probe_dir", "none", "Leave one of the two out."
        )
    if evaluate.has_tasks and not evaluate.forgetting:
        asked = "evaluate.tasks.names" if tasks.names else "evaluate.asked"
        yield must("evaluate.forgetting", f"true with {asked}", False, "Scores are kept in forgetting.json.")
    if len(set(tasks.names)) < len(tasks.names):
        yield must("evaluate.tasks.names", "different names", ", ".join(tasks.names), "Name each once.")
    if tasks.num_fewshot is not None and tasks.num_fewshot < 0:
        yield must("evaluate.tasks.num_fewshot", "0 or more", tasks.num_fewshot, "Set 0 for none.")
    for key, least in (("limit", 1), ("batch_tokens", 1), ("max_length", 2)):
        value = getattr(tasks, key)
        if value is not None and value < least:
            yield must(f"evaluate.tasks.{key}", f"at least {least}", value, f"Set {least}, or leave it out.")


def asked_problems(asked: AskedConfig, data: DataConfig) -> Iterator[Problem]:
    """Yield every broken rule about tool calls and refusals; whether there are such turns is seen in the stores."""
    calls, refusals, key = asked.tool_calls, asked.refusals, "evaluate.asked"
    if calls.num < 0:
        yield must(f"{key}.tool_calls.num", "0 or more", calls.num, "Set 200.")
    for name, section in (("tool_calls", calls), ("refusals", refusals)):
        if section.max_new_tokens < 1:
            yield must(f"{key}.{name}.max_new_tokens", "at least 1", section.max_new_tokens, "Set 64.")
    chats = {name: one for name, one in data.sources.items() if one.holds_chats and not one.holds_preferences}
    if calls.num > 0 and not chats:
        fix = "Only turns of format=chat are asked, and of completion with as_chat=true."
        yield must(f"{key}.tool_calls.num", "0 without a source of chats", calls.num, fix)
    elif calls.num > 0 and not any(
        data.validation_frac > 0 or one.role is Role.probe for one in chats.values()
    ):
        fix = "Set data.validation_frac=0.02."
        yield must(
            "data.validation_frac", f"more than 0 with {key}.tool_calls.num", data.validation_frac, fix
        )
    for task, file in refusals.files.items():
        if not file.endswith((".jsonl", ".txt")):
            name = task.rpartition("_")[2]
            yield must(f"{key}.refusals.{name}", "a .jsonl or .txt file", file, "Rename it.")
    if refusals.phrases is not None and not refusals.files:
        fix = f"Give {key}.refusals.harmful or benign as well."
        yield must(f"{key}.refusals.phrases", "left out without prompts", refusals.phrases, fix)


def gate_problems(
    gate: GateConfig, data: DataConfig, forgetting: bool, objective: ObjectiveConfig
) -> Iterator[Problem]:
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
        pairs = [name for name in sets_about(key, held_out) if data.sources[name].holds_preferences]
        if pairs and rule.min_drop_nats is not None and not _learns_chosen(objective):
            # benchmarks/results/preference_runs.json: 59 to 61 % right after 53, and 0.01 to 0.07 nats a token lost.
            yield must(
                f"gate.sets.{key}.min_drop_nats",
                f"left out for {pairs[0]}, whose chosen answers commonly become less likely while more pairs are "
                "ranked right",
                rule.min_drop_nats,
                "Set gate=preference, or objective.preference.nll_weight=1, which learns them as well.",
            )
        limits = {"max_rise_nats": rule.max_rise_nats, "min_drop_nats": rule.min_drop_nats}
        yield from _limit_problems(f"gate.sets.{key}", limits, "nats")
    for key, wanted in gate.tasks.items():
        limits = {name: getattr(wanted, name) for name in ("max_drop", "min_rise", "max_rise", "min_drop")}
        yield from _limit_problems(f"gate.tasks.{key}", limits, wanted.metric)


def _learns_chosen(objective: ObjectiveConfig) -> bool:
    """Tell whether a loss has the cross-entropy of chosen answers in it."""
    learns = objective.preference.chosen_nll_weight > 0
    return objective.kind is not ObjectiveKind.preference or learns


def _limit_problems(key: str, limits: dict[str, float | None], unit: str) -> Iterator[Problem]:
    if all(limit is None for limit in limits.values()):
        first = next(iter(limits))
        example = 0.05 if unit == "nats" else 0.02
        yield must(key, "a rule", "empty", f"Set {key}.{first}={example}.")
    for name, limit in limits.items():
        if limit is not None and not limit >= 0:
            yield must(f"{key}.{name}", "0 or more", limit, f"It is a size in {unit}.")
