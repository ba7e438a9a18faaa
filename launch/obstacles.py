"""What speaks against handing a run in from this machine, all of it told at once. Loads no torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import trainer
from trainer.command.missing_here import folder_problems, source_problems
from trainer.command.model_rules import rules_of_named_model
from trainer.config.apart import why_no_run
from trainer.config.check import find_problems
from trainer.config.check_cluster import limit_problems, local_problem, node_local, submit_problems
from trainer.config.cluster import ContainerRuntime
from trainer.config.rule import Problem, must, problem, said
from trainer.config.schema import RunConfig
from trainer.errors import ConfigError, TrainerError
from trainer.evaluate.prompt_file import PROMPT_FILE, read_prompts
from trainer.evaluate.tasks.known import known_problems
from trainer.metrics.trackers import tracker_problems
from trainer.model.base_folder import Needs
from trainer.model.on_disk import is_missing, model_problems

from .fewer import shrink_problems
from .places import local_problems, missing_problems
from .slurm import NodeKind, site_problems
from .words import is_contained

Site = Callable[[], list[NodeKind] | str]
"""Asks for the partitions, once; a dry run is told why there is no answer."""


ASKED = (
    *("cluster.scheduler", "cluster.partition", "cluster.num_nodes", "cluster.ranks_per_node"),
    *("cluster.gpus_per_node", "cluster.gres", "cluster.cpus_per_rank", "cluster.time_limit_min"),
)
"""What a partition is asked for; a problem of these may be why it has too little."""
SHAPE = Needs(tokenizer=False, weights=False)
"""Of a name of the hub, whose files the first node downloads: into a cache that may be another than this shell's."""


def obstacles(config: RunConfig, site: Site, is_dry: bool) -> list[Problem]:
    """Return all problems that can be known before memory is forecast.

    Args:
        is_dry: What is not on this machine is only said: the script may be meant for another.
    """
    num_ranks = config.cluster.num_nodes * max(config.cluster.ranks_per_node, 1)
    found = [*find_problems(config, num_ranks), *submit_problems(config.cluster, config.run_dir)]
    is_asked_well = not any(one.key in ASKED for one in found)
    found += limit_problems(config.cluster)
    found += [*local_problems(config, os.environ), *_working_directory(config), *_interpreter(config)]
    found += [] if is_dry else [*_place_problems(config, {one.key for one in found})]
    found += [*_evaluation_problems(config), *_tracker_problems(config)]
    try:
        kinds = site()
        found += site_problems(config.cluster, kinds) if is_asked_well and not isinstance(kinds, str) else []
    except ConfigError as error:
        found.append(said("cluster.scheduler", str(error)))
    if not any(one.is_in(("model", "data.seq_len")) for one in found):
        found += _model_problems(config, is_dry)
    return list(dict.fromkeys(found))


def is_elsewhere(config: RunConfig) -> bool:
    """Tell whether the model is a folder that is not on this machine, so that nothing can be known of it."""
    return is_missing(config.model.path)


def missing_image(config: RunConfig) -> str:
    """Return the image where it is a file that is not there."""
    container = config.cluster.container
    if container.runtime is ContainerRuntime.none or not container.image:
        return ""
    is_file = container.image.startswith(("/", ".", "~")) or container.image.endswith((".sif", ".sqsh"))
    return container.image if is_file and not Path(container.image).expanduser().exists() else ""


def _model_problems(config: RunConfig, is_dry: bool) -> Iterator[Problem]:
    """Yield what the model's config.json says against the run."""
    if is_dry and is_elsewhere(config):
        return
    if is_dry:  # otherwise the whole folder was looked at
        yield from (one for one in model_problems(config.model, SHAPE) if one.key == "model.path")
    yield from rules_of_named_model(config)
    try:
        yield from shrink_problems(config)
    except TrainerError as error:
        yield said("model.path", str(error))


def _working_directory(config: RunConfig) -> Iterator[Problem]:
    """Yield a problem where a job would begin in a folder that other nodes do not have."""
    here = str(Path.cwd())
    folder = node_local(config.cluster, here)
    if folder is not None:
        yield said(
            "working directory",
            f"The working directory must be on a disk that all nodes share, since the job begins in it, but is "
            f"'{here}' instead, and {folder} is each node's own. Submit from a shared folder, or change "
            "cluster.node_local_paths if this one is shared here.",
        )


def _interpreter(config: RunConfig) -> Iterator[Problem]:
    """Yield a problem where the Python of the ranks, or what it runs, is on a disk of this machine alone."""
    cluster = config.cluster
    if is_contained(cluster):
        return
    choose = (
        "Install Palimpsest in an environment on a shared disk and submit with it, or set cluster.python=FILE"
    )
    if cluster.python is not None:
        places = [cluster.python, os.path.realpath(cluster.python)] if "/" in cluster.python else []
    else:
        package = str(Path(trainer.__file__).parent)
        places = [sys.executable, sys.prefix, os.path.realpath(sys.executable), package]
    found = [one for place in places for one in local_problem(cluster, "cluster.python", place, choose)]
    yield from found[:1]


def _image_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield a problem when the image is a file that is not there."""
    image = missing_image(config)
    if image:
        yield must(
            "cluster.container.image",
            "an image that is there",
            image,
            "Convert it with `apptainer build` or `enroot import`, or give another path.",
        )


def _place_problems(config: RunConfig, told: Collection[str]) -> Iterator[Problem]:
    """Yield what is wrong with the places that a job reads and writes, on the machine that hands it in.

    Args:
        told: Keys of places that must be elsewhere, so that it matters nothing whether they are here.
    """
    yield from _image_problems(config)
    gone = [*missing_problems(config)]
    yield from (one for one in gone if one.key not in told)
    if "run_dir" not in told:
        yield from folder_problems("run_dir", config.run_dir)
        if (why := why_no_run(config, Path(config.run_dir))) is not None:
            yield said("run_dir", why)
    if is_contained(config.cluster):
        return
    needs = Needs() if Path(config.model.path).exists() else SHAPE
    for one in (*model_problems(config.model, needs), *source_problems(config)):
        if not any(other.key == one.key or other.key.startswith(f"{one.key}.") for other in gone):
            yield one


def _evaluation_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield what is wrong with benchmark tasks and prompts, where the job will see what is seen here."""
    evaluate, cluster = config.evaluate, config.cluster
    try:
        read_prompts(evaluate.during.samples)
    except ConfigError as error:
        yield problem(PROMPT_FILE, str(error).removeprefix(f"`{PROMPT_FILE}` "))
    if cluster.python is not None or cluster.container.runtime is not ContainerRuntime.none:
        return
    variables = {**os.environ, **cluster.environment}
    include_path = evaluate.tasks.include_path
    yield from known_problems("evaluate.tasks.names", evaluate.tasks.names, include_path, variables)
    yield from known_problems("evaluate.during.tasks", evaluate.during.tasks, include_path, variables)


def _tracker_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield what trackers lack here, where the job has what is installed here."""
    if config.cluster.container.image is None and config.cluster.python is None:
        yield from tracker_problems(config.log, Path(config.run_dir), config.cluster.environment)
