"""The loaded model as tasks ask it, and all that is asked of it: benchmark tasks, tool calls, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.config.model import ModelKind
from trainer.config.schema import RunConfig
from trainer.config.tune import TuneConfig
from trainer.evaluate.base import BaseIdentity
from trainer.evaluate.tasks.asked_task import AskedTask
from trainer.evaluate.tasks.batches import TaskModel
from trainer.evaluate.tasks.harness import load_everywhere
from trainer.evaluate.tasks.refusals import ask_refusals
from trainer.evaluate.tasks.scores import BASE_FILE, TaskScores
from trainer.evaluate.tasks.tool_calls import ask_calls
from trainer.model.cache import context_length, end_tokens
from trainer.model.embedded import EMBEDDED
from trainer.run.session import Session


def build_task_scores(session: Session) -> TaskScores | None:
    """Return what runs benchmark tasks and asks our own, if any are asked for. Collective: every rank loads them."""
    config, options = session.config, session.config.evaluate.tasks
    asked = session.mesh.from_first(lambda: ask_ours(session))
    if not options.names and not asked:
        return None
    tasks = load_everywhere(options, session.mesh) if options.names else None
    path, cache_dir = session.run_dir / BASE_FILE, Path(config.data.cache_dir)
    base = base_identity(session)
    return TaskScores(path, cache_dir, tasks, task_model(session), session.tokenizer, base, asked)


def ask_ours(session: Session) -> list[AskedTask]:
    """Lay out what is asked beside tasks of lm-eval: calls of held-out rows, and prompts that are refused or not.

    Raises:
        ConfigError: There is nothing of the kind.
    """
    config, tokenizer = session.config, session.tokenizer
    asked: list[AskedTask] = []
    if config.evaluate.asked.tool_calls.num:
        held_out = {
            name: session.stores[name].validation
            for name, source in config.data.sources.items()
            if source.holds_chats and not source.holds_preferences
        }
        packs = config.data.max_validation_packs
        asked.append(ask_calls(held_out, config.evaluate.asked.tool_calls, packs, tokenizer))
    return [*asked, *ask_refusals(config.evaluate.asked.refusals, tokenizer)]


def task_model(session: Session) -> TaskModel:
    """Return the loaded model as benchmark tasks and prompts use it."""
    config, loaded, tokenizer = session.config, session.loaded, session.tokenizer
    options, hf_config = config.evaluate.tasks, loaded.model.config
    own_ends = frozenset() if tokenizer.eos_id is None else frozenset([tokenizer.eos_id])
    return TaskModel(
        policy=session.policy,
        hf_config=hf_config,
        pad_id=session.pad_id,
        end_ids=end_tokens(loaded.model) | own_ends,
        max_length=options.max_length or _room(hf_config, config.tune) or config.data.seq_len,
        batch_tokens=options.batch_tokens,
    )


def base_identity(session: Session) -> BaseIdentity:
    """Return what names the base of a run. Collective: every rank."""
    config = session.config
    return BaseIdentity(
        name=_base_name(config),
        digest=session.begun_digest(),
        dtype=config.zero.dtype,
        quantise=config.tune.quantise.value,
        attention=config.model.attention.value,
        kernels=config.model.kernels.value,
    )


def _base_name(config: RunConfig) -> str:
    is_embedded = config.model.kind is ModelKind.embedded
    name = EMBEDDED if is_embedded else config.model.path or config.model.kind.value
    return name if config.tune.start is None else f"{name} with the adapter {config.tune.start}"


def _room(hf_config: Any, tune: TuneConfig) -> int | None:
    """Return the longest document the model was made for, behind its virtual tokens."""
    longest = context_length(hf_config)
    return longest - tune.virtual_tokens if longest is not None and tune.is_virtual else longest
