"""`palimpsest submit`: check, freeze, render one batch script and hand it to SLURM. Loads no torch."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainer.command.finished import find_finished
from trainer.command.fitting import DTYPE_LEFT, fitted
from trainer.command.plan import LightForecast, forecast_without_torch
from trainer.config.check import find_problems, refuse
from trainer.config.check_cluster import lead_problems
from trainer.config.cluster import Scheduler
from trainer.config.many import many
from trainer.config.rule import Problem, must
from trainer.config.schema import RunConfig
from trainer.config.snapshot import freeze, holds_values, write_atomic
from trainer.errors import ConfigError, Exit, TrainerError
from trainer.run.lost import refuse_lost
from trainer.runtime.lock import refuse_in_use

from .attempts import SCRIPT, last_job, measured_save_s, note
from .fewer import shrink_memory_problems
from .obstacles import Site, is_elsewhere, missing_image, obstacles
from .places import hub_folders, missing_places, mounted
from .render import render
from .slurm import ENDED, NodeKind, SlurmSilent, hand_in, has_slurm, job_state, node_kinds
from .words import Job, is_contained, own_folders

LEAST_LEAD_S = 120
"""SLURM may send its signal up to a minute early, and looks at the clock twice a minute."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A submission that breaks no rule."""

    config: RunConfig
    script: str
    says: tuple[str, ...]
    """What a person should know of it."""


def submit(config: RunConfig, is_dry: bool) -> int:
    """Submit a run, or print its script; return the exit code.

    Raises:
        ConfigError: Lists every rule that is broken.
    """
    if config.checkpoint.resume and config.checkpoint.enabled and not is_dry:
        refuse_lost(Path(config.run_dir))
    finished = find_finished(config)
    if finished is not None and finished.is_done and not is_dry:
        print(finished.sentence)
        return Exit.done
    ready = check(config, find_site(config, is_dry), is_dry)
    if is_dry:
        print(ready.script, end="")
        print("\n".join(ready.says), file=sys.stderr)
        return Exit.done
    _refuse_doubles(Path(config.run_dir))
    job_id = hand_over(ready)
    print("\n".join(ready.says))
    print(f"Job {job_id}. See: palimpsest status {config.run_dir}")
    return Exit.done


def find_site(config: RunConfig, is_dry: bool) -> Site:
    """Return what asks SLURM; a dry run does without an answer."""
    can_submit = has_slurm()
    if not can_submit:
        must_have = not is_dry and config.cluster.scheduler is Scheduler.slurm
        return _refuse_without_slurm if must_have else lambda: "there is no SLURM here"
    return functools.cache(_kinds_or_reason if is_dry else node_kinds)


def _refuse_without_slurm() -> str:
    """Refuse to submit where nothing can be submitted."""
    raise ConfigError(
        "`palimpsest submit` must run where SLURM's sbatch and sinfo are on the PATH, but they are not here. "
        "Log in to the cluster, or print the script with --dry-run."
    )


def _kinds_or_reason() -> list[NodeKind] | str:
    try:
        return node_kinds()
    except SlurmSilent as silent:
        return f"sinfo does not answer ({silent.reason})"


def check(config: RunConfig, site: Site, is_dry: bool) -> Ready:
    """Check a run against all rules, the site and the memory forecast, and render its script.

    Args:
        is_dry: What is not on this machine is only said: the script may be meant for another.

    Raises:
        ConfigError: Lists every rule that is broken.
    """
    num_ranks = config.cluster.num_nodes * max(config.cluster.ranks_per_node, 1)
    fewest_ranks = config.cluster.fewest_nodes * max(config.cluster.ranks_per_node, 1)
    found = obstacles(config, site, is_dry)
    if found and any(find_problems(config, num_ranks)):
        refuse(found)  # what memory takes is not known of what breaks a rule
    is_known = not is_elsewhere(config)
    try:
        fit = fitted(config, fewest_ranks, can_load=False, is_known=is_known)
        forecast = forecast_without_torch(fit.config, num_ranks) if is_known else None
    except TrainerError:
        refuse(found)
        raise
    config = fit.left_to_first_rank
    save_s, origin = _save_time(config, forecast)
    lead_s = config.cluster.signal_lead_s or max(LEAST_LEAD_S, round(60 + 2 * save_s))
    too_large = [*_memory_problems(config, forecast)]
    if not too_large and is_known:
        too_large = [*shrink_memory_problems(fit.config)]
    refuse([*found, *too_large, *lead_problems(config.cluster, lead_s, save_s, origin)])
    job = _job(config, lead_s)
    script = render(config.cluster, job)
    said = [
        *_says(config, num_ranks, forecast, lead_s),
        *_mounts_said(config, job),
        *_unseen(config, site(), is_dry),
        *([DTYPE_LEFT] if fit.dtype else []),
        *([fit.sentence] if fit.reason else []),
    ]
    return Ready(config, script, tuple(said))


def _job(config: RunConfig, lead_s: int) -> Job:
    job = Job(
        name=config.name,
        run_dir=Path(config.run_dir),
        work_dir=Path.cwd(),
        cache_dir=Path(config.data.cache_dir),
        python=config.cluster.python or sys.executable,
        signal_lead_s=lead_s,
    )
    if not is_contained(config.cluster):
        return job
    job = dataclasses.replace(job, hub_folders=hub_folders(config, os.environ))
    return dataclasses.replace(job, reads=tuple(mounted(config, own_folders(job))))


def hand_over(ready: Ready) -> int:
    """Freeze the configuration, write the script and submit it; return the job."""
    run_dir = Path(ready.config.run_dir)
    refuse_in_use(run_dir)
    freeze(ready.config, run_dir)
    (run_dir / "logs").mkdir(exist_ok=True)
    write_atomic(run_dir / SCRIPT, ready.script, is_private=holds_values(ready.config))
    # The script counts attempts without progress from here on; it may run before sbatch has returned.
    note(run_dir, "submitted")
    job_id = hand_in(run_dir / SCRIPT)
    note(run_dir, "queued", job=job_id)
    return job_id


def _refuse_doubles(run_dir: Path) -> None:
    """Raise when a job of this run directory is still in the queue."""
    job_id = last_job(run_dir)
    state = job_state(job_id) if job_id is not None else None
    if state is not None and state not in ENDED:
        raise ConfigError(
            f"`run_dir` must have one job at a time, but job {job_id} of {run_dir} is {state}. Wait for it, or end "
            f"it with: scancel {job_id}"
        )


def _save_time(config: RunConfig, forecast: LightForecast | None) -> tuple[float, str]:
    """Return the seconds of one save and where they are from."""
    if not config.checkpoint.enabled:
        return 0.0, "none are made"
    measured = measured_save_s(Path(config.run_dir))
    if measured is not None:
        return measured, "the longest of this run"
    if forecast is None:
        return 0.0, "not known"
    cluster = config.cluster
    seconds = forecast.checkpoint_bytes / (cluster.write_gb_per_s * 1e9 * cluster.fewest_nodes)
    return seconds, f"{forecast.checkpoint_bytes / 1e9:.3g} GB at {cluster.write_gb_per_s:g} GB/s a node"


def _memory_problems(config: RunConfig, forecast: LightForecast | None) -> Iterator[Problem]:
    """Yield a problem when the run does not fit the GPUs it asks for."""
    if forecast is None or not config.cluster.num_gpus_asked or forecast.fits is not False:
        return
    yield must(
        "cluster.gpu_gib" if config.plan.gpu_gib is None else "plan.gpu_gib",
        f"at least {forecast.need_gib:.1f} for this run, with {config.plan.reserve_gib:g} in reserve",
        forecast.gpu_gib,
        f"Smallest change that fits: {forecast.advice}" if forecast.advice else "See `palimpsest plan`.",
    )


def _mounts_said(config: RunConfig, job: Job) -> Iterator[str]:
    """Yield what the image sees beside the run's own folders and those that are listed."""
    reads = [f"{folder} ({key})" for folder, key in mounted(config, own_folders(job)).items()]
    hub = [f"{folder} (the cache of the hub)" for folder in job.hub_folders]
    if reads or hub:
        yield f"Mounted in the image, because the configuration reads them: {', '.join([*reads, *hub])}."


def _unseen(config: RunConfig, kinds: list[NodeKind] | str, is_dry: bool) -> Iterator[str]:
    """Yield what could not be looked at from here, which only a dry run does without."""
    if isinstance(kinds, str):
        yield f"The site was not asked: {kinds}. Partition, GPUs of a node and limits were not checked."
    image = missing_image(config)
    if image:
        yield f"The image {image} was not found on this machine (cluster.container.image): submit where it is."
    if is_dry:
        yield from (
            f"There is nothing at {place.path} on this machine ({place.key}): it may be on the cluster, and was not "
            "checked further."
            for place in missing_places(config)
        )


def _says(config: RunConfig, num_ranks: int, forecast: LightForecast | None, lead_s: int) -> Iterator[str]:
    """Yield what a person should know of the submission."""
    cluster, finished = config.cluster, find_finished(config)
    if config.model.warning is not None:
        yield config.model.warning
    if finished is not None:
        yield finished.sentence
    yield (
        f"{config.name}: {many(num_ranks, 'rank')} on {many(cluster.num_nodes, 'node')}, started by "
        f"{cluster.launcher.value}; told to save {lead_s} s before the limit of {cluster.time_limit_min} minutes."
    )
    if cluster.smaller:
        yield (
            f"Where nodes are lost it goes on by itself with those that are left, at least {cluster.min_nodes} "
            "(cluster.min_nodes)."
        )
    if forecast is None and is_elsewhere(config):
        yield "Memory is not forecast: the model is not on this machine. See `palimpsest plan` where it is."
    elif forecast is None:
        yield "Memory is not forecast: this architecture needs torch for that. See `palimpsest plan`."
    elif cluster.num_gpus_asked and forecast.gpu_gib is not None:
        yield (
            f"Memory: {forecast.need_gib - config.plan.reserve_gib:.1f} GiB of {forecast.gpu_gib:g} on a GPU, "
            f"{config.plan.reserve_gib:g} in reserve."
        )
    elif cluster.num_gpus_asked:
        yield (
            f"Memory: {forecast.need_gib - config.plan.reserve_gib:.1f} GiB on a GPU; set cluster.gpu_gib to have it "
            "compared."
        )
