"""Words of the script's commands: the interpreter, and the image around it. Pure."""

from __future__ import annotations

import re
import shlex
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.config.cluster import ClusterConfig, ContainerRuntime
from trainer.config.reference import EnvText, shell_pieces

INDENT = "    "


@dataclass(frozen=True, slots=True)
class Job:
    """What a script needs beside the cluster section; all paths absolute."""

    name: str
    run_dir: Path
    work_dir: Path
    """Where relative paths of the configuration begin."""
    cache_dir: Path
    python: str
    signal_lead_s: int
    hub_folders: tuple[Path, ...] = ()
    """Caches of the hub that ranks in an image read, HF_HOME first; made where they are missing."""
    reads: tuple[str, ...] = ()
    """Folders that ranks in an image read beside these."""


class Template(string.Template):
    """A text with @@{names}: `$` is bash's."""

    delimiter = "@@"


def is_contained(cluster: ClusterConfig) -> bool:
    """Tell whether ranks run in an image."""
    return cluster.container.runtime is not ContainerRuntime.none


def python(cluster: ClusterConfig, job: Job) -> str:
    """Return the interpreter, quoted."""
    return shlex.quote(cluster.container.python if is_contained(cluster) else job.python)


def own_folders(job: Job) -> list[Path]:
    """Return the folders that every run reads or writes and that may be new, each once."""
    return [*dict.fromkeys((job.run_dir, job.work_dir, job.cache_dir, *job.hub_folders))]


def mounts(cluster: ClusterConfig, job: Job) -> list[str]:
    """Return the folders to see inside; the run's own, and the nodes' scratch, are the same inside as outside."""
    scratch = [cluster.scratch] if cluster.scratch else []
    return [*dict.fromkeys([*map(str, own_folders(job)), *job.reads, *scratch]), *cluster.container.mounts]


def apptainer(cluster: ClusterConfig, job: Job) -> list[str]:
    """Return the words before a command that runs in an Apptainer image."""
    container = cluster.container
    if container.runtime is not ContainerRuntime.apptainer:
        return []
    gpu = ["--nv"] if cluster.num_gpus_asked else []
    binds = [f"--bind={shlex.quote(mount)}" for mount in mounts(cluster, job)]
    words = ["apptainer", "exec", *gpu, *binds, f"--pwd={shlex.quote(str(job.work_dir))}"]
    return [*words, *map(shlex.quote, container.options), shlex.quote(container.image or "")]


def pyxis(cluster: ClusterConfig, job: Job) -> list[str]:
    """Return the options of srun that run a task in an enroot image."""
    container = cluster.container
    if container.runtime is not ContainerRuntime.pyxis:
        return []
    pairs = [mount if ":" in mount else f"{mount}:{mount}" for mount in mounts(cluster, job)]
    return [
        f"--container-image={shlex.quote(container.image or '')}",
        f"--container-mounts={shlex.quote(','.join(pairs))}",
        f"--container-workdir={shlex.quote(str(job.work_dir))}",
        *map(shlex.quote, container.options),
    ]


def on_all_nodes(cluster: ClusterConfig, per_node: int) -> list[str]:
    """Return the words of srun that start so many tasks on every node of an attempt: it may be fewer than at first."""
    if cluster.smaller:
        nodes, tasks = '"$SLURM_JOB_NUM_NODES"', f'"$((SLURM_JOB_NUM_NODES * {per_node}))"'
        listed = ['--nodelist="$SLURM_JOB_NODELIST"']
    else:
        nodes, tasks, listed = str(cluster.num_nodes), str(cluster.num_nodes * per_node), []
    return ["srun", f"--nodes={nodes}", f"--ntasks={tasks}", f"--ntasks-per-node={per_node}", *listed]


def in_double_quotes(text: str) -> str:
    """Quote a text whose variables are not to be expanded."""
    return '"' + re.sub(r'([\\"$`])', r"\\\1", text) + '"'


def in_directive(value: str) -> str:
    """Quote a value of an #SBATCH line as sbatch reads it, to which # begins a comment, in quotes too."""
    escaped = re.sub(r"([\\\"'#])", r"\\\1", value)
    return f'"{escaped}"' if " " in value else escaped


def from_environment(value: str) -> str:
    """Quote a value of a variable; one that names the environment is left to that of the job."""
    pieces = shell_pieces(value) if isinstance(value, EnvText) else None
    if pieces is None:
        return shlex.quote(value)
    return "".join(f'"${{{piece}}}"' if is_name else shlex.quote(piece) for piece, is_name in pieces)


def lines(words: Sequence[str]) -> str:
    """Break a command into lines of at most about 100 characters."""
    lines, line = [], ""
    for word in words:
        if line and len(line) + len(word) > 100:
            lines.append(line)
            line = ""
        line = f"{line} {word}" if line else word
    lines.append(line)
    return INDENT + f" \\\n{INDENT * 2}".join(lines)
