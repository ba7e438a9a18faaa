"""Rules of the cluster section: those of every run, and those of a submission. Pure."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

from trainer.config.cluster import ClusterConfig, ContainerRuntime, Launcher, Scheduler, gres_gpus
from trainer.config.preflight import PreflightConfig
from trainer.config.reference import EnvText, references, shell_pieces
from trainer.config.rule import Problem, must, problem
from trainer.config.watch import WatchConfig

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
RUNNERS = ("pdsh", "openmpi", "slurm")
"""Those of DeepSpeed's that were seen to train; it has others."""
_NCCL = ("NCCL_", "TORCH_NCCL_")
_OURS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "SLURM_", "SBATCH_", "PALIMPSEST_")


def cluster_problems(cluster: ClusterConfig) -> Iterator[Problem]:
    """Yield every broken rule that needs no scheduler to tell."""
    for key, value, least in (
        ("num_nodes", cluster.num_nodes, 1),
        ("ranks_per_node", cluster.ranks_per_node, 0),
        ("time_limit_min", cluster.time_limit_min, 1),
        ("max_stuck_attempts", cluster.max_stuck_attempts, 1),
        ("gpus_per_node", cluster.gpus_per_node, 0),
        ("cpus_per_rank", cluster.cpus_per_rank, 1),
        ("signal_lead_s", cluster.signal_lead_s, 1),
        ("comm_timeout_s", cluster.comm_timeout_s, 1),
    ):
        if value is not None and value < least:
            yield must(f"cluster.{key}", f"at least {least}", value, f"Set cluster.{key}={max(least, 1)}.")
    if not 0 <= cluster.master_port < 65536:
        yield must("cluster.master_port", "0 or a port", cluster.master_port, "Set 0 to pick a free one.")
    if not cluster.write_gb_per_s > 0:
        yield must("cluster.write_gb_per_s", "more than 0", cluster.write_gb_per_s, "Set 1.")
    if cluster.gpu_gib is not None and not cluster.gpu_gib > 0:
        yield must("cluster.gpu_gib", "more than 0", cluster.gpu_gib, "Set cluster.gpu_gib=80.")
    yield from _min_nodes_problems(cluster)
    if cluster.hostfile is not None and cluster.launcher is not Launcher.deepspeed:
        yield must(
            "cluster.launcher",
            "deepspeed with a hostfile",
            cluster.launcher.value,
            "Set cluster.launcher=deepspeed or leave cluster.hostfile out.",
        )
    elif cluster.hostfile is None and _takes_hostfile(cluster):
        yield problem(
            "cluster.hostfile",
            "must be given with cluster=hostfile, but is null instead. Set cluster.hostfile=FILE, or leave "
            "cluster=hostfile out to train on this machine alone.",
            is_open=True,
        )
    if cluster.deepspeed_runner not in RUNNERS:
        yield must(
            "cluster.deepspeed_runner", f"one of {', '.join(RUNNERS)}", cluster.deepspeed_runner, "Set pdsh."
        )
    yield from _variable_problems(cluster)
    yield from _container_problems(cluster)
    yield from _preflight_problems(cluster.preflight)
    yield from _watch_problems(cluster.watch)


def _takes_hostfile(cluster: ClusterConfig) -> bool:
    """Tell whether ranks are to be started as conf/cluster/hostfile.yaml says: by deepspeed, without a scheduler."""
    return cluster.launcher is Launcher.deepspeed and cluster.scheduler is Scheduler.none


def _min_nodes_problems(cluster: ClusterConfig) -> Iterator[Problem]:
    key, value = "cluster.min_nodes", cluster.min_nodes
    if value is None:
        return
    if cluster.scheduler is not Scheduler.slurm:
        rule = "null without SLURM: the batch script of `palimpsest submit` leaves lost nodes out"
        yield must(key, rule, value, "Leave it out, or set cluster=slurm and submit.")
    elif not 1 <= value <= cluster.num_nodes:
        rule = f"in [1, cluster.num_nodes], cluster.num_nodes being {cluster.num_nodes}"
        yield must(key, rule, value, f"Set cluster.min_nodes={max(cluster.num_nodes // 2, 1)}.")


def _watch_problems(watch: WatchConfig) -> Iterator[Problem]:
    if not 0.05 <= watch.beat_s <= 60:
        yield must("cluster.watch.beat_s", "in [0.05, 60]", watch.beat_s, "Set cluster.watch.beat_s=2.")
        return
    limits = ("step_s", "load_s", "prove_s", "evaluate_s", "generate_s", "save_s", "finish_s")
    for name in limits:
        if not getattr(watch, name) >= 3 * watch.beat_s:
            rule = f"at least 3 x cluster.watch.beat_s = {3 * watch.beat_s:g}"
            fix = f"Raise it, or set cluster.watch.beat_s={max(getattr(watch, name) / 3, 0.05):.2g}."
            yield must(f"cluster.watch.{name}", rule, getattr(watch, name), fix)
    if not watch.step_factor >= 1:
        yield must("cluster.watch.step_factor", "at least 1", watch.step_factor, "Set 5.")
    if not (watch.straggler_ratio == 0 or watch.straggler_ratio > 1):
        yield must("cluster.watch.straggler_ratio", "0 or more than 1", watch.straggler_ratio, "Set 1.3.")
    if watch.straggler_steps < 1:
        yield must("cluster.watch.straggler_steps", "at least 1", watch.straggler_steps, "Set 10.")


def _variable_problems(cluster: ClusterConfig) -> Iterator[Problem]:
    for section, names in (("environment", cluster.environment), ("nccl", cluster.nccl)):
        for name in names:
            if not _VARIABLE.fullmatch(name):
                yield must(f"cluster.{section}", "names of variables", name, "Use letters, digits and _.")
            elif name.startswith(_OURS):
                yield must(f"cluster.{section}.{name}", "left to the launcher", names[name], "Remove it.")
    for name, value in cluster.nccl.items():
        if not name.startswith(_NCCL):
            yield must(
                f"cluster.nccl.{name}", "a variable of NCCL", value, f"Set cluster.environment.{name}."
            )


def _container_problems(cluster: ClusterConfig) -> Iterator[Problem]:
    container = cluster.container
    for mount in container.mounts:
        if not mount.startswith("/"):
            yield must("cluster.container.mounts", "HOST or HOST:INSIDE from /", mount, "Write whole paths.")
    if container.image and container.runtime is ContainerRuntime.none:
        yield must(
            "cluster.container.runtime",
            "apptainer or pyxis with an image",
            "none",
            "Set cluster.container.runtime.",
        )


def _preflight_problems(preflight: PreflightConfig) -> Iterator[Problem]:
    default = PreflightConfig()
    for key, is_allowed, rule in (
        ("timeout_s", 15 <= preflight.timeout_s <= 600, "in [15, 600]"),
        (
            "rendezvous_s",
            1 <= preflight.rendezvous_s < preflight.timeout_s,
            f"in [1, timeout_s), timeout_s being {preflight.timeout_s}",
        ),
        ("max_clock_skew_s", preflight.max_clock_skew_s > 0, "more than 0"),
        ("min_matmul_share", 0 <= preflight.min_matmul_share <= 1, "in [0, 1]"),
        ("max_ecc_errors", preflight.max_ecc_errors >= 0, "at least 0"),
        ("visible_s", 0 < preflight.visible_s < preflight.timeout_s, "more than 0 and less than timeout_s"),
        *(
            (name, floor is None or floor >= 0, "at least 0, or null")
            for name, floor in (
                ("min_intra_node_gb_per_s", preflight.min_intra_node_gb_per_s),
                ("min_inter_node_gb_per_s", preflight.min_inter_node_gb_per_s),
            )
        ),
    ):
        if not is_allowed:
            usual = getattr(default, key)
            if key in ("rendezvous_s", "visible_s"):
                usual = min(usual, max(preflight.timeout_s // 2, 1))
            fix = f"Set cluster.preflight.{key}={'null' if usual is None else usual}."
            yield must(f"cluster.preflight.{key}", rule, getattr(preflight, key), fix)


def submit_problems(cluster: ClusterConfig, run_dir: str) -> Iterator[Problem]:
    """Yield every broken rule of a configuration that is to be submitted."""
    if cluster.scheduler is not Scheduler.slurm:
        yield must(
            "cluster.scheduler",
            "slurm to submit",
            cluster.scheduler.value,
            "Use cluster=slurm or your site's file, or `palimpsest train` for this machine.",
        )
    if cluster.ranks_per_node == 0:
        yield must(
            "cluster.ranks_per_node",
            "at least 1 to submit: there is no GPU to count here",
            cluster.ranks_per_node,
            "Set it to the GPUs of a node.",
        )
    gpus, of_gres = cluster.num_gpus_asked, gres_gpus(cluster.gres)
    if of_gres is not None and of_gres != gpus:
        yield must(
            "cluster.gres",
            f"of the {gpus} GPUs of cluster.gpus_per_node",
            cluster.gres,
            f"Set cluster.gpus_per_node={of_gres}, or null.",
        )
    if 0 < gpus < cluster.ranks_per_node:
        asked = "gres" if cluster.gpus_per_node is None else "gpus_per_node"
        yield must(
            "cluster.ranks_per_node",
            f"at most the {gpus} GPUs of a node, cluster.{asked}",
            cluster.ranks_per_node,
            f"Set cluster.ranks_per_node={gpus}.",
        )
    if cluster.scratch is not None and not cluster.scratch.startswith("/"):
        yield must("cluster.scratch", "a folder from /", cluster.scratch, "Write the whole path.")
    yield from _named_problems(cluster)
    for option in cluster.sbatch_options:
        if not option.startswith("-"):
            yield must(
                "cluster.sbatch_options", "options such as --mail-type=END", option, "Begin it with --."
            )
    if cluster.container.runtime is not ContainerRuntime.none and not cluster.container.image:
        yield must(
            "cluster.container.image",
            "an image file or address",
            cluster.container.image,
            "Set cluster.container.image=FILE.",
        )
    yield from local_problem(cluster, "run_dir", run_dir)


def _named_problems(cluster: ClusterConfig) -> Iterator[Problem]:
    """Yield what names the environment in a way that a shell cannot: a value would stand in the script."""
    for section, values in (("environment", cluster.environment), ("nccl", cluster.nccl)):
        for name, value in values.items():
            if isinstance(value, EnvText) and shell_pieces(value) is None:
                yield must(
                    f"cluster.{section}.{name}",
                    "text and ${oc.env:NAME}, nothing else of OmegaConf, to be handed to a job",
                    value,
                    "Export the whole value as one variable.",
                )
    for line in references(cluster.setup):
        yield must("cluster.setup", "lines of shell, which name variables as $NAME", line, "Write $NAME.")


def local_problem(
    cluster: ClusterConfig, key: str, path: str, choose: str = "Choose a shared folder"
) -> Iterator[Problem]:
    """Yield a problem where a path is on a node's own disk.

    Args:
        choose: How the fix begins.
    """
    folder = node_local(cluster, path)
    if folder is not None:
        yield must(
            key,
            f"on a disk that all nodes share, and {folder} is each node's own",
            path,
            f"{choose}, or change cluster.node_local_paths if this one is shared here.",
        )


def node_local(cluster: ClusterConfig, path: str) -> str | None:
    """Return the folder of each node's own that a path is in; None where all nodes see it."""
    return next((folder for folder in cluster.node_local_paths if is_below(path, folder)), None)


def is_below(path: str, folder: str) -> bool:
    """Tell whether a path is a folder or in it, by their names."""
    return (posixpath.normpath(path).rstrip("/") + "/").startswith(folder.rstrip("/") + "/")


def limit_problems(cluster: ClusterConfig) -> Iterator[Problem]:
    """Yield a problem where the time limit is no more than the lead that a person set; see `lead_problems`."""
    lead_s = cluster.signal_lead_s
    if lead_s is not None and 0 < cluster.time_limit_min * 60 <= lead_s:
        yield must(
            "cluster.time_limit_min",
            f"more than {lead_s / 60:g} minutes: ranks are told to stop {lead_s} s before the limit "
            "(cluster.signal_lead_s)",
            cluster.time_limit_min,
            f"Set at least {lead_s // 60 + 10}, or cluster.signal_lead_s=null.",
        )


def lead_problems(cluster: ClusterConfig, lead_s: int, save_s: float, origin: str) -> Iterator[Problem]:
    """Yield a problem where the time limit leaves no room for a save.

    Args:
        lead_s: Seconds before the limit at which ranks are told to stop.
        save_s: Seconds of one save.
        origin: Where `save_s` is from.
    """
    if cluster.signal_lead_s is not None and cluster.signal_lead_s < save_s:
        yield must(
            "cluster.signal_lead_s",
            f"at least the {save_s:.0f} s that a save takes ({origin})",
            cluster.signal_lead_s,
            "Set null for a lead from that time.",
        )
    if cluster.signal_lead_s is None and cluster.time_limit_min * 60 <= lead_s:
        yield must(
            "cluster.time_limit_min",
            f"more than {lead_s / 60:g} minutes: ranks are told to stop {lead_s} s before the limit, for a save of "
            f"{save_s:.0f} s ({origin})",
            cluster.time_limit_min,
            f"Set at least {lead_s // 60 + 10}.",
        )
