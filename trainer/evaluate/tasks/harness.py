"""Benchmark tasks of lm-eval: found by name, loaded, and run on the model that is loaded.

Importing this loads no lm-eval; a person without the extra `eval` misses nothing until tasks are named.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import io
import json
import logging
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.config.gate import TaskRule
from trainer.config.tasks import TasksConfig
from trainer.dist.mesh import Mesh
from trainer.dist.seed import capture_rng, restore_rng
from trainer.errors import ConfigError, TrainerError
from trainer.evaluate.tasks.batches import TaskModel
from trainer.evaluate.tasks.known import harness_problems
from trainer.evaluate.tasks.score import TaskScore, scores_of
from trainer.evaluate.tasks.task_files import anchored, find_broken, refuse_too_much
from trainer.model.tokenizer import Tokenizer

NAMES = "evaluate.tasks.names"
NAMES_DURING = "evaluate.during.tasks"
BOOTSTRAP_DRAWS = 1000
"""For the few metrics without a closed form of their standard error."""
FEWSHOT_SEED = 1234
"""lm-eval's own: the same examples as `lm_eval` on the command line takes."""


@dataclass(frozen=True, slots=True)
class LoadedTasks:
    """Tasks with their documents, ready to run as often as there are models."""

    plain: dict[str, Any]
    """What lm-eval's evaluate() takes: tasks, groups and what is in each group."""
    options: TasksConfig

    @property
    def names(self) -> list[str]:
        """Return the names of all tasks and groups."""
        return [*self.plain["tasks"], *self.plain["groups"]]


def check_names(options: TasksConfig, key: str = NAMES) -> None:
    """Raise unless lm-eval is there and knows every name. Loads no data.

    Args:
        key: Where the names are from.
    Raises:
        ConfigError: Says what to install, mend, or write instead.
    """
    if not options.names:
        return
    for lacking in harness_problems(key, options.names, options.include_path):
        raise ConfigError(lacking.sentence)
    known = _manager(options).all_tasks
    for name in options.names:
        if name in known:
            continue
        broken = find_broken(_folder(options)) if options.include_path is not None else None
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        raise ConfigError(
            f"`{key}` must name tasks of lm-eval or of include_path, but has '{name}' instead."
            + (f" Did you mean '{near[0]}'?" if near else "")
            + (f" {broken}" if broken else "")
            + " `lm_eval ls tasks` lists lm-eval's."
        )


def load_tasks(options: TasksConfig, key: str = NAMES) -> LoadedTasks:
    """Load tasks and their documents, which may download them.

    Args:
        key: Where the names are from.
    Raises:
        ConfigError: An unknown task, one whose data cannot be had, or one that cannot be run here.
    """
    check_names(options, key)
    tasks: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    with _quiet(), _lm_evals_seeds():
        for name in options.names:
            try:
                found = _manager(options).load([name])
            except Exception as error:  # whatever datasets, YAML and a task's own code raise
                raise ConfigError(_unloadable(key, name, error)) from error
            for task in set(found["tasks"]) & set(tasks):
                raise ConfigError(
                    f"`{key}` must name every task once, but '{task}' is in '{name}' and in one named "
                    "before it instead. Remove one."
                )
            tasks |= found["tasks"]
            groups |= found["groups"]
        for name, task in tasks.items():
            _check_runnable(key, name, task)
            _set_fewshot(task, options.num_fewshot)
    members = {name: group.child_names for name, group in groups.items()}
    return LoadedTasks({"tasks": tasks, "groups": groups, "group_map": members}, options)


def load_everywhere(options: TasksConfig, mesh: Mesh, key: str = NAMES) -> LoadedTasks:
    """Load tasks on every rank, first on rank 0, which may download. Collective: all ranks raise if one does."""
    loaded: list[LoadedTasks] = []
    if not mesh.is_first:
        logging.getLogger("lm_eval").setLevel(logging.ERROR)

    def load() -> None:
        loaded.append(load_tasks(options, key))

    mesh.from_first(load)
    problem: Exception | None = None
    try:
        if not mesh.is_first:
            load()
    except TrainerError as error:
        problem = error
    for found in mesh.gather(problem):
        if found is not None:
            raise found
    return loaded[0]


def check_rules(rules: Mapping[str, TaskRule], loaded: LoadedTasks | None, asked: Sequence[str] = ()) -> None:
    """Raise when the gate has a rule about a task that is not going to run.

    Args:
        asked: Names of our own.
    Raises:
        ConfigError: Names the tasks that are.
    """
    names = [*(loaded.names if loaded is not None else []), *asked]
    for key in rules:
        if key not in names:
            raise ConfigError(
                f"`gate.tasks.{key}` must be about a task in evaluate.tasks.names ({', '.join(names) or 'none'}), but "
                f"is not instead. Add it with 'evaluate.tasks.names=[{key}]', or leave the rule out "
                f"(one of a file: '~gate.tasks.{key}')."
            )


def run_tasks(loaded: LoadedTasks, model: TaskModel, tokenizer: Tokenizer) -> list[TaskScore]:
    """Run the tasks on the loaded model. Collective: every rank; all get rank 0's scores."""
    from lm_eval.evaluator import evaluate

    from trainer.evaluate.tasks.lm import EngineLM

    options = loaded.options
    for task in loaded.plain["tasks"].values():
        # The generator of few-shot examples goes on from one run to the next: another model would see others.
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    with _quiet(), _lm_evals_seeds():
        results = evaluate(
            lm=EngineLM(model, tokenizer),
            task_dict=loaded.plain,
            limit=options.limit,
            # Only rank 0's numbers are kept.
            bootstrap_iters=BOOTSTRAP_DRAWS if model.policy.mesh.is_first else 0,
            log_samples=False,
            apply_chat_template=options.apply_chat_template,
            fewshot_as_multiturn=options.apply_chat_template,
        )
    scores: list[TaskScore] = model.policy.mesh.broadcast(scores_of(results))
    return scores


def tasks_digest(loaded: LoadedTasks) -> str:
    """Return a digest of what is asked and how: documents, prompts, metrics, options and lm-eval's version."""
    from lm_eval import __version__

    options = loaded.options
    described: list[Any] = [__version__, options.limit, options.max_length, options.apply_chat_template]
    with _quiet(), _lm_evals_seeds():
        for name, task in sorted(loaded.plain["tasks"].items()):
            config = {key: value for key, value in task.dump_config().items() if key not in _NO_CONTENT}
            documents = hashlib.sha256()
            for document in task.eval_docs:
                documents.update(_plain(document))
            if config.get("num_fewshot"):
                for document in task.fewshot_docs():
                    documents.update(_plain(document))
            described.append([name, str(task.VERSION), config, documents.hexdigest()])
    described.append({name: group.child_names for name, group in loaded.plain["groups"].items()})
    return hashlib.sha256(_plain(described)).hexdigest()


_NO_CONTENT = ("metadata", "dataset_kwargs", "dataset_path")
"""Where documents come from; what they say is in the digest itself."""


def _plain(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode("utf-8", "surrogatepass")


def _folder(options: TasksConfig) -> Path:
    return Path(options.include_path or ".").expanduser().absolute()


def _manager(options: TasksConfig) -> Any:
    """Return lm-eval's index of tasks. Reading its own 14,000 takes 13 s, so only when a name needs them."""
    if options.include_path is None:
        return _index(None, True)
    own = _index(_folder(options), False)
    is_whole = all(_is_in(own.task_index, name) for name in options.names)
    return own if is_whole else _index(_folder(options), True)


def _is_in(index: Mapping[str, Any], name: str) -> bool:
    """Tell whether an index holds a task, or a group with all it is made of."""
    entry = index.get(name)
    if entry is None:
        return False
    members = (entry.cfg or {}).get("task")
    if not isinstance(members, list):
        return True
    named = [
        member if isinstance(member, str) else member.get("task", member.get("group")) for member in members
    ]
    return all(isinstance(member, str) and _is_in(index, member) for member in named)


@functools.cache
def _index(folder: Path | None, with_defaults: bool) -> Any:
    from lm_eval.tasks import TaskManager

    if folder is not None:
        refuse_too_much(folder)
    manager = TaskManager(include_path=folder, include_defaults=with_defaults)
    if folder is not None:
        for entry in manager.task_index.values():
            anchored(entry, folder)
    return manager


def _check_runnable(key: str, name: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
        why = "runs code that the model wrote" if getattr(task, "UNSAFE_CODE", False) else "shows images"
        raise ConfigError(f"`{key}` must name tasks about text, but '{name}' {why} instead. Leave it out.")
    chosen = task.get_config("generation_kwargs") or {}
    samples = chosen.get("do_sample") or (chosen.get("temperature") or 0) > 0
    if task.OUTPUT_TYPE == "generate_until" and (samples or (chosen.get("num_beams") or 1) > 1):
        raise ConfigError(
            f"`generation_kwargs` of task '{name}' must be greedy, so that base and tuned model do not differ by "
            f"chance, but is {chosen} instead. Set do_sample: false in a task YAML of your own in "
            "evaluate.tasks.include_path."
        )


def _set_fewshot(task: Any, num_fewshot: int | None) -> None:
    """Set the number of examples as lm-eval's simple_evaluate does."""
    own = task.get_config("num_fewshot")
    if own is None:
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
    elif num_fewshot is not None and own != 0:
        task.set_config(key="num_fewshot", value=num_fewshot)


def _unloadable(key: str, name: str, error: Exception) -> str:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return (
        f"`{key}` must name tasks that can be loaded, but '{name}' cannot: {reason.rstrip('.')}. "
        "Download its data first, or mend its YAML; relative data_files count from the folder of the YAML."
    )


@contextlib.contextmanager
def _lm_evals_seeds() -> Iterator[None]:
    """Seed Python and NumPy as lm-eval's command line does, for tasks that shuffle; put the run's own state back."""
    state = capture_rng()
    random.seed(0)
    np.random.seed(1234)
    try:
        yield
    finally:
        restore_rng(state)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval's bars and prints, one set a rank, off the terminal, and its bootstrap in this process.

    It would fork a pool: unsafe beside process groups and a GPU.
    """
    import lm_eval.api.task as module

    bar, pools = module.tqdm, os.environ.get("DISABLE_MULTIPROC")
    module.tqdm = functools.partial(bar, disable=True)
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        module.tqdm = bar
        del os.environ["DISABLE_MULTIPROC"]
        if pools is not None:
            os.environ["DISABLE_MULTIPROC"] = pools
