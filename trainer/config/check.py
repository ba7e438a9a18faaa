"""Cross-field rules of a configuration, checked once and reported all together.

Pure: no torch, no files. Rules that need the model or the data are checked where those are opened.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from trainer.config.begun import may_be_uneven
from trainer.config.check_cluster import cluster_problems
from trainer.config.check_columns import column_problems
from trainer.config.check_curate import curate_problems
from trainer.config.check_during import best_problems, during_problems
from trainer.config.check_evaluate import asked_problems, gate_problems, task_problems
from trainer.config.check_experts import expert_problems
from trainer.config.check_export import export_problems
from trainer.config.check_generate import generate_problems
from trainer.config.check_learn import learn_problems
from trainer.config.check_log import log_problems
from trainer.config.check_model import model_problems
from trainer.config.check_numbers import number_problems, seed_problems
from trainer.config.check_objective import objective_problems
from trainer.config.check_pull import pull_problems
from trainer.config.check_replay import replay_problems
from trainer.config.check_scores import score_problems
from trainer.config.check_sequence import batch_rule, sequence_problems
from trainer.config.check_sharing import sharing_problems
from trainer.config.check_spikes import spike_problems
from trainer.config.check_synthetic import synthetic_problems
from trainer.config.check_tune import tune_problems
from trainer.config.check_zero import zero_problems
from trainer.config.data import (
    ANSWERED,
    DataConfig,
    Format,
    LongDocuments,
    Packing,
    PackingMode,
    SourceConfig,
)
from trainer.config.metric import CHAT_PROMPTS
from trainer.config.optim import ScheduleConfig, ScheduleName
from trainer.config.plan import MIN_WINDOWS, PlanConfig
from trainer.config.rates import USUAL
from trainer.config.rule import Problem, must, problem, problems_shown
from trainer.config.schema import RunConfig
from trainer.errors import ConfigError


def check_config(
    config: RunConfig, world_size: int | None = None, only: tuple[str, ...] | None = None
) -> None:
    """Raise one ConfigError that lists every broken rule.

    Args:
        world_size: Ranks of the run when already known; batch rules need it.
        only: Sections and keys that a command reads, when it trains nothing; None means all.
    """
    refuse([found for found in find_problems(config, world_size) if only is None or found.is_in(only)])


def refuse(problems: Sequence[Problem]) -> None:
    """Raise one ConfigError that lists the problems, if there are any."""
    if problems:
        raise ConfigError(problems_shown([found.sentence for found in problems]))


def find_problems(config: RunConfig, world_size: int | None = None) -> Iterator[Problem]:
    """Yield every broken rule; of a number that is not finite that alone, as another fix would be worked out of it."""
    odd = list(number_problems(config))
    keys = {found.key for found in odd}
    yield from (found for found in _rules_of_sections(config, world_size) if found.key not in keys)
    yield from odd


def _rules_of_sections(config: RunConfig, world_size: int | None) -> Iterator[Problem]:
    yield from _run_problems(config)
    yield from seed_problems(config.seed)
    yield from model_problems(config.model)
    yield from _data_problems(config)
    yield from replay_problems(config)
    yield from objective_problems(config)
    yield from tune_problems(config)
    yield from _batch_problems(config, world_size)
    yield from _optim_problems(config)
    yield from _schedule_problems(config.schedule)
    yield from zero_problems(config.zero, config.model.attention)
    yield from expert_problems(config, world_size)
    yield from sequence_problems(config, world_size)
    yield from sharing_problems(config)
    yield from _cadence_problems(config)
    yield from spike_problems(config)
    yield from score_problems(config.evaluate.scores)
    yield from log_problems(config.log, config.data.sources)
    yield from _plan_problems(config.plan)
    yield from task_problems(config.evaluate)
    yield from asked_problems(config.evaluate.asked, config.data)
    yield from during_problems(config.evaluate, config.data)
    yield from best_problems(config.checkpoint, config.evaluate, config.data)
    yield from gate_problems(config.gate, config.data, config.evaluate.forgetting, config.objective)
    yield from generate_problems(config.replay.generate)
    yield from synthetic_problems(config.synthetic)
    yield from cluster_problems(config.cluster)


def _run_problems(config: RunConfig) -> Iterator[Problem]:
    if config.name in ("", ".", "..") or "/" in config.name:
        yield must("name", "a name without '/', and none of a folder above", config.name, "Set name=my-run.")
    if not config.run_dir:
        yield must("run_dir", "a folder", config.run_dir, "Set run_dir=runs/my-run.")


def _data_problems(config: RunConfig) -> Iterator[Problem]:
    data = config.data
    if not data.sources:
        yield problem(
            "data.sources",
            "must name at least one source, but is empty instead. "
            "Use data=text data.sources.corpus.path=FILES, or data=chat data.sources.chat.path=FILES.",
            is_open=True,
        )
    if data.seq_len < 8:
        yield must("data.seq_len", "at least 8", data.seq_len, "Set data.seq_len=2048.")
    if not 0 <= data.validation_frac <= 0.5:
        yield must("data.validation_frac", "in [0, 0.5]", data.validation_frac, "Set 0.02.")
    if data.max_validation_packs < 1:
        yield must("data.max_validation_packs", "at least 1", data.max_validation_packs, "Set 64.")
    if data.num_workers < 0:
        yield must("data.num_workers", "0 (all cores) or more", data.num_workers, "Set 0.")
    if CHAT_PROMPTS in data.sources:
        rest = f"must have another name, but is called like what is built in (kl/{CHAT_PROMPTS}) instead. Rename it."
        yield problem(f"data.sources.{CHAT_PROMPTS}", rest)
    for name, source in data.sources.items():
        if data.packing is PackingMode.none and source.packing is not None:
            yield must(
                f"data.sources.{name}.packing",
                "left out with data.packing=none",
                source.packing.value,
                "Set it to null, or set data.packing=packed.",
            )
        yield from _source_problems(f"data.sources.{name}", source, _meant_by(data))
        yield from column_problems(f"data.sources.{name}", source)
        yield from learn_problems(f"data.sources.{name}", source)
        yield from curate_problems(f"data.sources.{name}", source)


def _meant_by(data: DataConfig) -> str:
    """Return a question about sources of which nothing but their files is said: their names may be mistyped."""
    bare = [
        f"`data.sources.{name}`"
        for name, source in data.sources.items()
        if (source.path or source.dataset)
        and dataclasses.replace(source, path=None, dataset=None) == SourceConfig()
    ]
    return f" Did you mean it by {' or '.join(bare)}?" if bare else ""


def _source_problems(key: str, source: SourceConfig, meant: str) -> Iterator[Problem]:
    if (source.path is None) == (source.dataset is None):
        if source.path is None:
            rest = f"must be given, but is null instead. Set {key}.path=FILES, or {key}.dataset=NAME.{meant}"
            yield problem(f"{key}.path", rest, is_open=True)
        else:
            rest = f"must have one of `path` and `dataset`, but has both instead. Set {key}.dataset=null."
            yield problem(key, rest)
    if source.as_chat and source.format not in ANSWERED:
        rule = f"false unless format={'|'.join(found.value for found in ANSWERED)}"
        yield must(f"{key}.as_chat", rule, True, f"Remove it or set {key}.format=completion.")
    if source.packing is Packing.concat and source.format not in (Format.text, Format.ids):
        rule = f"best_fit for format={source.format.value}"
        yield must(
            f"{key}.packing", rule, "concat", "Concat would cut conversations and answers; set best_fit."
        )
    if source.holds_preferences and source.long_documents not in (None, LongDocuments.drop):
        rule = f"drop for format={source.format.value}, which is kept or dropped whole"
        yield must(f"{key}.long_documents", rule, source.long_documents.value, "Leave it out.")
    if source.txt_documents not in ("file", "line", "paragraph"):
        yield must(f"{key}.txt_documents", "file, line or paragraph", source.txt_documents, "Set file.")
    if source.min_acceptance is not None and not 0 <= source.min_acceptance <= 1:
        fix = "Set 0.8, or null to take rows that nobody looked at."
        yield must(f"{key}.min_acceptance", "in [0, 1], or null", source.min_acceptance, fix)
    low, high = source.clean.min_chars, source.clean.max_chars
    if high is not None and high < low:
        yield must(f"{key}.clean.max_chars", f"at least min_chars ({low})", high, "Raise it.")


def _batch_problems(config: RunConfig, world_size: int | None) -> Iterator[Problem]:
    train, seq_len = config.train, config.data.seq_len
    lengths = {
        "max_steps": train.max_steps,
        "max_epochs": train.max_epochs,
        "max_tokens": train.max_tokens,
    }
    given = [key for key, value in lengths.items() if value is not None]
    if len(given) != 1:
        shown = " and ".join(given) if given else "none"
        yield problem(
            "train",
            f"must have exactly one of max_steps, max_epochs and max_tokens, but has {shown} "
            f"instead. {'Set the others to null.' if given else 'Set train.max_epochs=1.'}",
            is_open=not given,
        )
    for key in given:
        if (lengths[key] or 0) <= 0:
            yield must(f"train.{key}", "more than 0", lengths[key], "Give a length.")
    if train.micro_batch_size < 1:
        yield must("train.micro_batch_size", "at least 1", train.micro_batch_size, "Set 1.")
        return
    if config.cluster.num_nodes < 1 or config.cluster.ranks_per_node < 0:
        return
    ranks = world_size or config.cluster.num_nodes * config.cluster.ranks_per_node
    sharing = max(train.sequence_parallel, 1)
    places = max(ranks // sharing, 1)
    unit = places * train.micro_batch_size * max(seq_len, 1)
    if may_be_uneven(config, ranks) and train.global_batch_tokens % max(seq_len, 1) == 0:
        return
    if train.global_batch_tokens < unit or train.global_batch_tokens % unit:
        nearest = max(round(train.global_batch_tokens / unit), 1) * unit
        is_larger = ranks > 1 and nearest > train.global_batch_tokens
        fewer = " A step grows by that: where the data is small take fewer ranks, or a smaller data.seq_len."
        yield must(
            "train.global_batch_tokens",
            f"{batch_rule(sharing)} = {places} x {train.micro_batch_size} x {seq_len} = {unit}",
            train.global_batch_tokens,
            f"Set train.global_batch_tokens={nearest}.{fewer if is_larger else ''}",
        )


def _optim_problems(config: RunConfig) -> Iterator[Problem]:
    optim = config.optim
    if not optim.lr > 0:
        usual = USUAL.get(config.tune.method, "1e-5")
        yield must("optim.lr", "more than 0", optim.lr, f"Set optim.lr={usual}.")
    if len(optim.betas) != 2 or not all(0 <= beta < 1 for beta in optim.betas):
        yield must("optim.betas", "two numbers in [0, 1)", optim.betas, "Set [0.9,0.95].")
    if not optim.eps > 0:
        yield must("optim.eps", "more than 0", optim.eps, "Set 1e-8.")
    if not optim.weight_decay >= 0:
        yield must("optim.weight_decay", "0 or more", optim.weight_decay, "Set 0.1.")
    if not optim.clip_norm >= 0:
        yield must("optim.clip_norm", "0 (off) or more", optim.clip_norm, "Set 1.0.")
    yield from pull_problems(config)


def _schedule_problems(schedule: ScheduleConfig) -> Iterator[Problem]:
    for key in ("warmup_frac", "final_frac", "decay_frac", "cooldown_frac", "constant_frac"):
        value = getattr(schedule, key)
        if not 0 <= value <= 1:
            yield must(f"schedule.{key}", "in [0, 1]", value, "It is a share.")
    if schedule.warmup_steps is not None and schedule.warmup_steps < 0:
        yield must("schedule.warmup_steps", "0 or more", schedule.warmup_steps, "Set 0.")
    parts = {
        ScheduleName.wsd: schedule.warmup_frac + schedule.decay_frac,
        ScheduleName.infinite: schedule.warmup_frac + schedule.cooldown_frac + schedule.decay_frac,
    }
    if parts.get(schedule.name, 0.0) > 1:
        yield must(
            "schedule",
            f"phases that add up to at most 1 for {schedule.name.name}",
            round(parts[schedule.name], 4),
            "Lower warmup_frac, cooldown_frac or decay_frac.",
        )


def _plan_problems(plan: PlanConfig) -> Iterator[Problem]:
    if plan.gpu_gib is not None and not plan.gpu_gib > 0:
        yield must("plan.gpu_gib", "more than 0", plan.gpu_gib, "Set plan.gpu_gib=80.")
    if plan.gpu is not None and not any(letter.isalpha() for letter in plan.gpu):
        yield must(
            "plan.gpu", "the name of a GPU", plan.gpu, "Set plan.gpu=H100; its memory is plan.gpu_gib."
        )
    if not plan.network_gbit > 0:
        yield must("plan.network_gbit", "more than 0", plan.network_gbit, "Set plan.network_gbit=400.")
    if plan.price_per_gpu_hour is not None and not plan.price_per_gpu_hour > 0:
        fix = "Leave it out, or set what a GPU costs in an hour."
        yield must("plan.price_per_gpu_hour", "more than 0", plan.price_per_gpu_hour, fix)
    if plan.data_windows < MIN_WINDOWS:
        yield must("plan.data_windows", f"at least {MIN_WINDOWS}", plan.data_windows, "Set 64.")
    if not plan.reserve_gib >= 0:
        yield must("plan.reserve_gib", "0 or more", plan.reserve_gib, "Set plan.reserve_gib=4.")


def _cadence_problems(config: RunConfig) -> Iterator[Problem]:
    if config.checkpoint.keep_last < 1:
        yield must("checkpoint.keep_last", "at least 1", config.checkpoint.keep_last, "Set 2.")
    for key, value in (
        ("checkpoint.every_steps", config.checkpoint.every_steps),
        ("evaluate.every_steps", config.evaluate.every_steps),
        ("evaluate.kl_packs", config.evaluate.kl_packs),
        ("evaluate.forgotten_documents", config.evaluate.forgotten_documents),
        ("evaluate.recovery_steps", config.evaluate.recovery_steps),
        ("train.max_non_finite_steps", config.train.max_non_finite_steps),
        ("train.verify_every", config.train.verify_every),
    ):
        if value is not None and value < 0:
            yield must(key, "0 or more", value, "Set 0 for never.")
    if not config.checkpoint.node_mtbf_days > 0:
        yield must("checkpoint.node_mtbf_days", "more than 0", config.checkpoint.node_mtbf_days, "Set 264.")
    if config.evaluate.patience is not None and config.evaluate.every_steps == 0:
        yield must("evaluate.every_steps", "more than 0 with patience", 0, "Set evaluate.every_steps=100.")
    for key, which in (
        ("evaluate.checkpoint", config.evaluate.checkpoint),
        ("export.checkpoint", config.export.checkpoint),
    ):
        words = ("last", "best", "base") if key.startswith("evaluate") else ("last", "best")
        if which not in words and not which.isdigit():
            yield must(key, f"{', '.join(words)} or a step number", which, f"Set {key}=last.")
    yield from export_problems(config)
