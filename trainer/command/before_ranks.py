"""What can be known to be wrong before ranks start."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.config.check_export import exports_adapter
from trainer.config.gate import about_nothing, sets_about
from trainer.config.many import many
from trainer.config.metric import is_task_metric
from trainer.config.model import ModelKind
from trainer.config.objective import ObjectiveKind
from trainer.config.replay import RatioController, ReplayChoice, ReplayConfig
from trainer.config.rule import told_together
from trainer.config.schema import RunConfig
from trainer.config.teacher import distilled
from trainer.config.tune import Quantise
from trainer.data.types import TokenizerLike
from trainer.errors import ConfigError, DataError, TrainerError
from trainer.evaluate.prompt_file import PROMPT_FILE, read_prompts
from trainer.runtime.job import is_requeued

if TYPE_CHECKING:
    from trainer.data.store.store import Store
    from trainer.run.teacher_ids import OtherIds


def check_stores(config: RunConfig, command: str, tokenizer: TokenizerLike) -> int | None:
    """Raise before ranks start when the stores do not hold what a training or an evaluation is going to ask of them.

    Returns the optimizer steps of a training.
    """
    from trainer.data.store.prepared import open_all
    from trainer.run.packing import with_packing

    if config.gate.sets and config.evaluate.checkpoint != "base":
        stores = open_all(with_packing(config, says=False).data, tokenizer)
        check_gate_sets(config, [name for name, store in stores.items() if store.validation.num_packs])
    if command == "train":
        check_prompts(config, tokenizer)
        return check_draws(config, tokenizer)
    return None


def check_disk(config: RunConfig, num_ranks: int, num_steps: int) -> None:
    """Raise before a model is loaded when the disk has no room for checkpoints, where its config.json tells their size.

    For who holds the run directory. Where only torch can count the model, its run asks once that is loaded.

    Args:
        num_steps: Of the run.
    Raises:
        CheckpointError: Says how much room is needed, and why.
    """
    if not config.checkpoint.enabled:
        return
    from trainer.checkpoint.space import BYTES_PER_PARAMETER, make_room
    from trainer.command.plan import forecast_without_torch

    found = None
    with contextlib.suppress(TrainerError):  # what is wrong with the model is told when it is loaded
        found = forecast_without_torch(config, num_ranks)
    if found is not None:
        goes_on = config.checkpoint.resume or is_requeued(os.environ)
        num_trainable = found.checkpoint_bytes // BYTES_PER_PARAMETER
        every = config.evaluate.every_steps
        make_room(Path(config.run_dir), config.checkpoint, every, goes_on, num_trainable, num_steps)


def check_gate_sets(config: RunConfig, held_out: Sequence[str]) -> None:
    """Raise when the gate has a rule about a set that has no held-out text, such as one of a single document.

    Args:
        held_out: The sources that have some.
    Raises:
        ConfigError: Names the rule and the sets.
    """
    roles = {name: config.data.sources[name].role.value for name in held_out}
    sentences = [about_nothing(key, roles) for key in config.gate.sets if not sets_about(key, roles)]
    if sentences:
        raise told_together(sentences)


def check_draws(config: RunConfig, tokenizer: TokenizerLike) -> int:
    """Raise before ranks start when the run would draw what the stores do not hold; return its optimizer steps."""
    from trainer.data.store.prepared import open_all
    from trainer.mix.mixing import Mixing
    from trainer.run.packing import with_packing

    _check_conversations(config, tokenizer)
    stores = open_all(with_packing(config, says=False).data, tokenizer)
    packs_per_step = config.train.global_batch_tokens // config.data.seq_len
    mixing = Mixing(config.data, config.replay, config.train, config.seed, stores, packs_per_step)
    if config.replay.kl.beta:
        mixing.replay_to_draw()
    if config.objective.kind is ObjectiveKind.distill:
        _check_teacher_data(config, stores)
    _check_choice(config.replay, mixing.num_steps)
    if config.replay.controller is RatioController.hold:
        _check_watched([name for name in mixing.watch if not stores[name].validation.num_packs])
    return mixing.num_steps


def _check_teacher_data(config: RunConfig, stores: Mapping[str, Store]) -> None:
    """Raise when what is distilled holds tokens that the teacher does not know, or no prompt that is to be answered."""
    from trainer.rounds.asked_pieces import check_prompts
    from trainer.run.teacher_ids import check_used_ids

    names, splits = list(stores), {name: store.train for name, store in stores.items()}
    used = [names[number] for number in sorted(distilled(config.data.sources))]
    check_used_ids(_other_ids(config), splits, used)
    if config.objective.has_rounds:
        check_prompts(list(splits.values()), names, distilled(config.data.sources))


def check_teacher(config: RunConfig) -> None:
    """Raise before anything is prepared when the teacher of a distillation has another tokenizer than the student."""
    if config.objective.kind is ObjectiveKind.distill:
        _other_ids(config)


def _other_ids(config: RunConfig) -> OtherIds:
    from trainer.model.resolve import resolve_model
    from trainer.model.tokenizer import configured_tokenizer
    from trainer.run.teacher_ids import check_teacher_tokenizer

    source = resolve_model(config.model, Path(config.data.cache_dir))
    return check_teacher_tokenizer(config, configured_tokenizer(config.model, source))


def _check_choice(replay: ReplayConfig, num_steps: int) -> None:
    """Raise when replay shall be chosen and the run is over before the first choice."""
    if replay.choice is ReplayChoice.losing and not replay.chooses_in(num_steps):
        fix = f"Set replay.choice_every={max(num_steps // 5, 1)}" if num_steps > 2 else "Train longer"
        raise ConfigError(
            f"`replay.choice_every` must leave room for a choice in the {many(num_steps, 'step')} of this run, but is "
            f"{replay.choice_every} instead. {fix}, or replay.choice=uniform."
        )


def _check_watched(silent: Sequence[str]) -> None:
    """Raise when the ratio shall answer to sources that have no held-out text: their loss would never rise."""
    if silent:
        raise ConfigError(
            f"`replay.watch` must be of sources with held-out text, but {', '.join(silent)} has none instead. Raise "
            "data.validation_frac, give more documents, or name others in replay.watch."
        )


def _check_conversations(config: RunConfig, tokenizer: TokenizerLike) -> None:
    """Raise when the ratio shall answer to the KL on conversations, and the model has none.

    Raises:
        ConfigError: It has no chat template, or one that cannot render them, or a pack is too short for all of them.
    """
    from trainer.evaluate.conversations import ChatPrompts

    epsilon = config.replay.epsilon_kl
    if epsilon is None or config.replay.controller is not RatioController.hold:
        return
    leave = "Leave it out, or set model.chat_template"
    if not tokenizer.has_chat_template:
        raise _no_kl("a chat template, which this model's tokenizer has not", epsilon, leave)
    prompts = ChatPrompts(tokenizer, config.data.seq_len)
    if prompts.refusal is not None:
        why = f"a chat template that renders conversations (of the first: {prompts.refusal})"
        raise _no_kl(why, epsilon, leave)
    if not prompts.num_packs:
        raise _no_kl(
            f"conversations that fit data.seq_len={config.data.seq_len}", epsilon, "Raise data.seq_len"
        )


def _no_kl(without: str, epsilon: float, fix: str) -> ConfigError:
    return ConfigError(
        f"`replay.epsilon_kl` must be null without {without}, but is {epsilon:g} instead. {fix}."
    )


def check_prompts(config: RunConfig, tokenizer: TokenizerLike) -> None:
    """Raise before ranks start when the chat template refuses a prompt of a person's file.

    Raises:
        ConfigError: Names the prompt and what the template says.
    """
    for number, prompt in enumerate(read_prompts(config.evaluate.during.samples), start=1):
        try:
            if prompt.messages:
                tokenizer.render_chat(prompt.messages, None, True)
        except DataError as error:
            raise ConfigError(
                f"`{PROMPT_FILE}` must hold turns that the chat template takes, but it refuses prompt {number}: "
                f"{str(error).rstrip('.')}. Mend it, or write it as a `prompt` without evaluate.during.samples."
                "apply_chat_template."
            ) from error


def check_whole_export(config: RunConfig) -> None:
    """Raise before ranks start when the export of a run would lack what prepares its inputs.

    Raises:
        ModelError: The base also sees or hears, has no file of a processor, and would be written as a whole.
    """
    export = config.export
    if config.model.kind is not ModelKind.pretrained or export.text_only or exports_adapter(config):
        return
    from trainer.model.processor import require_processor
    from trainer.model.resolve import resolve_model

    require_processor(resolve_model(config.model, Path(config.data.cache_dir)), config.model)


def check_quantiser(config: RunConfig) -> None:
    """Raise before ranks start when the base is to be quantised and the package for it cannot be loaded."""
    if config.tune.quantise is not Quantise.none:
        from trainer.model.tune.quantiser import require_bitsandbytes

        require_bitsandbytes()


def check_start_adapter(config: RunConfig) -> None:
    """Raise before ranks start when the adapter to go on from cannot be read, or is one of another base."""
    if config.tune.start is not None:
        from trainer.model.resolve import resolve_model
        from trainer.run.start_adapter import check_start

        check_start(config, resolve_model(config.model, Path(config.data.cache_dir)))


def check_logins(config: RunConfig) -> None:
    """Raise when a tracker has no package or no login here."""
    from trainer.metrics.trackers import tracker_problems

    lacking = [*tracker_problems(config.log, Path(config.run_dir), config.cluster.environment)]
    if lacking:
        raise told_together([one.sentence for one in lacking])


def check_benchmarks(config: RunConfig, command: str) -> None:
    """Load the benchmark tasks before ranks start: a missing task or file is found, and data is downloaded, here."""
    evaluate = config.evaluate
    if command == "train":
        read_prompts(evaluate.during.samples)
    if evaluate.tasks.names:
        from trainer.evaluate.tasks.harness import check_rules, load_tasks

        loaded = load_tasks(evaluate.tasks)
        if clash := sorted({*loaded.names} & {*evaluate.asked.names}):
            raise ConfigError(
                f"`evaluate.tasks.names` must name no task that is called like what evaluate.asked asks, but has "
                f"'{clash[0]}' instead. Rename the task."
            )
        if command == "evaluate" and evaluate.checkpoint != "base":
            check_rules(config.gate.tasks, loaded, evaluate.asked.names)
    if evaluate.during.tasks and command == "train":
        from trainer.evaluate.tasks.harness import NAMES_DURING, load_tasks
        from trainer.evaluate.tasks.task_metrics import better_direction

        loaded = load_tasks(evaluate.tasks_during, NAMES_DURING)
        best = config.checkpoint.best
        if config.checkpoint.keep_best and is_task_metric(best.metric):
            better_direction(best.metric, best.direction, loaded)
