"""What SLURM knows and does: partitions from sinfo, submission with sbatch, the queue from squeue."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.config.cluster import ClusterConfig, gres_gpus
from trainer.config.rule import Problem, must
from trainer.errors import ConfigError

_GPUS = re.compile(r"\bgpu(?::[A-Za-z][^:,()]*)?:(\d+)")
TIMEOUT_S = 20
ENDED = (
    *("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY"),
    *("DEADLINE", "PREEMPTED", "REVOKED"),
)
"""States of a job that is over, unless it requeues itself: then it passes through one of them."""
# A login shell inside another job carries these; sbatch prefers them to the lines of the script.
_FOREIGN = ("SLURM_", "SBATCH_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_", "PALIMPSEST_")


class SlurmSilent(ConfigError):
    """SLURM is installed here and does not answer."""

    def __init__(self, sentence: str, reason: str) -> None:
        """Take the sentence, and the reason alone for whoever goes on without an answer."""
        super().__init__(sentence)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class NodeKind:
    """Nodes of a partition that are alike."""

    partition: str
    is_default: bool
    num_nodes: int
    num_gpus: int
    num_cpus: int
    limit_min: int | None
    """Longest job of the partition in minutes; None for no limit."""


def has_slurm() -> bool:
    """Tell whether this machine can submit."""
    return shutil.which("sbatch") is not None and shutil.which("sinfo") is not None


def node_kinds() -> list[NodeKind]:
    """Ask sinfo for the partitions that are up.

    Raises:
        SlurmSilent: The controller does not answer.
    """
    text = _ask(["sinfo", "--noheader", "--format=%P|%a|%D|%G|%c|%l"])
    return parse_sinfo(text)


def parse_sinfo(text: str) -> list[NodeKind]:
    """Read lines of `%P|%a|%D|%G|%c|%l`."""
    kinds = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) != 6 or cells[1] != "up":
            continue
        name, _, nodes, gres, cpus, limit = cells
        kinds.append(
            NodeKind(
                partition=name.rstrip("*"),
                is_default=name.endswith("*"),
                num_nodes=int(nodes),
                num_gpus=sum(int(count) for count in _GPUS.findall(gres)),
                num_cpus=int(cpus.rstrip("+")),
                limit_min=parse_minutes(limit),
            )
        )
    return kinds


def parse_minutes(text: str) -> int | None:
    """Return the minutes of SLURM's `D-HH:MM:SS` or a shorter form; None for `infinite`."""
    days, dash, clock = text.partition("-") if "-" in text else ("0", "", text)
    parts = clock.split(":")
    if not all(part.isdigit() for part in (days, *parts)):
        return None
    numbers = [int(part) for part in parts]
    if dash:
        hours, minutes, *_ = [*numbers, 0, 0]
    elif len(numbers) == 3:
        hours, minutes = numbers[0], numbers[1]
    else:
        hours, minutes = 0, numbers[0]
    return int(days) * 1440 + hours * 60 + minutes


def site_problems(cluster: ClusterConfig, kinds: Sequence[NodeKind]) -> Iterator[Problem]:
    """Yield everything the partition cannot give."""
    names = sorted({kind.partition for kind in kinds})
    chosen = [
        kind
        for kind in kinds
        if (kind.is_default if cluster.partition is None else kind.partition in cluster.partition.split(","))
    ]
    unknown = [name for name in (cluster.partition or "").split(",") if name and name not in names]
    if unknown or not chosen:
        yield must(
            "cluster.partition",
            f"one of {', '.join(names) or 'none, for none is up'}",
            unknown[0] if unknown else cluster.partition,
            f"Set cluster.partition={names[0]}." if names else "Ask your site.",
        )
        return
    where = ",".join(dict.fromkeys(kind.partition for kind in chosen))
    yield from _size_problems(cluster, chosen, where)
    limits = [kind.limit_min for kind in chosen]
    longest = None if None in limits else max(limit for limit in limits if limit is not None)
    if longest is not None and cluster.time_limit_min > longest:
        yield must(
            "cluster.time_limit_min",
            f"at most the {longest} minutes of partition {where}",
            cluster.time_limit_min,
            f"Set cluster.time_limit_min={longest}: the job requeues itself until the run is done.",
        )


def _size_problems(cluster: ClusterConfig, chosen: Sequence[NodeKind], where: str) -> Iterator[Problem]:
    """Yield what is wrong with GPUs, cores and nodes asked for."""
    gpus, cores = cluster.num_gpus_asked, (cluster.cpus_per_rank or 1) * cluster.ranks_per_node
    most_gpus, most_cores = max(k.num_gpus for k in chosen), max(k.num_cpus for k in chosen)
    if gpus > most_gpus:
        key = "ranks_per_node" if cluster.gpus_per_node is None else "gpus_per_node"
        fix = f"Set cluster.{key}={most_gpus}." if most_gpus else "Set cluster.gpus_per_node=0 for CPU ranks."
        if gres_gpus(cluster.gres) is not None:
            key, fix = "gres", f"Set cluster.gres=gpu:{most_gpus}." if most_gpus else "Set cluster.gres=null."
        yield must(
            f"cluster.{key}", f"at most the {most_gpus} GPUs of a node of partition {where}", gpus, fix
        )
        return
    if cores > most_cores:
        yield must(
            "cluster.cpus_per_rank",
            f"at most {most_cores // cluster.ranks_per_node}: a node of partition {where} has {most_cores} cores for "
            f"{cluster.ranks_per_node} ranks",
            cluster.cpus_per_rank,
            "Lower it.",
        )
        return
    fitting = sum(k.num_nodes for k in chosen if k.num_gpus >= gpus and k.num_cpus >= cores)
    if cluster.num_nodes > fitting:
        yield must(
            "cluster.num_nodes",
            f"at most the {fitting} such nodes of partition {where}",
            cluster.num_nodes,
            f"Set cluster.num_nodes={fitting}.",
        )


def hand_in(script: Path) -> int:
    """Submit a script and return the number of its job.

    Raises:
        ConfigError: sbatch refuses it.
    """
    answer = _ask(["sbatch", "--parsable", str(script)])
    return int(answer.split(";")[0])


def job_state(job_id: int) -> str | None:
    """Return the state of a job in the queue; None when it is not there, or nobody can tell."""
    return (job_states([job_id]) or {}).get(job_id)


def job_states(job_ids: Sequence[int]) -> dict[int, str] | None:
    """Return the states of those jobs that the queue still knows; None when nobody can tell."""
    if not job_ids or shutil.which("squeue") is None:
        return {}
    listed = ",".join(map(str, job_ids))
    try:
        text = _ask(["squeue", "--noheader", "--states=all", "--format=%i %T", f"--jobs={listed}"])
    except ConfigError as error:
        # What squeue says of a single job that it has forgotten.
        return {} if "Invalid job id" in str(error) else None
    rows = [line.split() for line in text.splitlines()]
    return {int(row[0]): row[1] for row in rows if len(row) == 2 and row[0].isdigit()}


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Leave out what another job left behind, so that the script alone decides."""
    return {name: value for name, value in environ.items() if not name.startswith(_FOREIGN)}


def _ask(command: list[str]) -> str:
    environment = clean_environment(os.environ)
    # Where SLURM's own settings are, not those of a job.
    environment |= {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment, check=True
        )
    except subprocess.CalledProcessError as error:
        said = [line.strip().removeprefix(f"{command[0]}: ") for line in error.stderr.splitlines()]
        said = [line.removeprefix("error: ") for line in said if line] or [f"exit code {error.returncode}"]
        if command[0] == "sinfo":
            # The lines after the first say where else the same was tried, in vain.
            raise SlurmSilent(
                f"SLURM must answer `sinfo` here, but it says instead: {said[0]}. Start this on a login node, or say "
                "where its settings are: export SLURM_CONF=FILE.",
                said[0],
            ) from error
        raise ConfigError(f"`{command[0]}` refused: {'; '.join(said)}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlurmSilent(
            f"SLURM must answer `{command[0]}` within {TIMEOUT_S} s, but does not. Is the controller up?",
            f"no answer to {command[0]} within {TIMEOUT_S} s",
        ) from error
    return done.stdout
