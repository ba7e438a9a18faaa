"""`palimpsest init --site`: a file of the group `cluster` for the cluster that sinfo tells of."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from trainer.command.init import write_new

from .slurm import NodeKind, SlurmSilent, node_kinds

GUESS = "ranks_per_node"
_LATER = """\
# account: NAME                     # who pays
# gpu_gib: 80                       # memory of one GPU; submit compares the forecast with it
# modules: [cuda/12.8]              # environment modules to load
# setup: ["source /shared/env/bin/activate"]
# nccl: {NCCL_SOCKET_IFNAME: ib0}   # the interface of the fast network
# scratch: /scratch                 # a folder on each node for temporary files
# container: {runtime: apptainer, image: /shared/palimpsest.sif}
"""


def write_site(folder: Path, name: str) -> list[str]:
    """Write the file and return what to say of it.

    Raises:
        ConfigError: The file is there.
    """
    name = name or "ours"
    kinds, why = _ask_site()
    file = folder / "cluster" / f"{name}.yaml"
    whole = Path.cwd() / folder
    words = shlex.join([f"cluster={name}", f"hydra.searchpath=[file://{whole}]"])
    head = f"# This cluster, for: palimpsest submit {words} ...\n# Every key: palimpsest explain cluster\n"
    write_new(file, f"{head}defaults: [slurm]\n{_partition(kinds)}{_LATER}")
    fill = f"Fill in partition, and {GUESS} where a node has other than 8 GPUs."
    told = [] if kinds else [f"The site was not asked: {why}. {fill}"]
    return [f"Written: {file}", *told, f"Then: palimpsest submit {words} ... --dry-run"]


def _ask_site() -> tuple[list[NodeKind], str]:
    """Return the site's nodes, and why there are none to tell of."""
    if shutil.which("sinfo") is None:
        return [], "there is no sinfo here"
    try:
        return node_kinds(), "sinfo tells of no partition that is up"
    except SlurmSilent as silent:
        return [], f"sinfo does not answer ({silent.reason})"


def _partition(kinds: Sequence[NodeKind]) -> str:
    """Return the lines of the partition with most GPUs, the default one of equal ones."""
    if not kinds:
        return (
            "# partition: gpu                    # as sinfo names it\n"
            f"{GUESS}: 8   # GPUs of a node; a guess, since the site was not asked\n"
        )
    best = max(kinds, key=lambda kind: (kind.num_nodes * kind.num_gpus, kind.is_default))
    names = ", ".join(sorted({kind.partition for kind in kinds}))
    ranks = max(best.num_gpus, 1)
    lines = [
        f"partition: {best.partition}   # of {names}",
        f"ranks_per_node: {ranks}   # {f'{best.num_gpus} GPUs a node' if best.num_gpus else 'no GPU: one rank a node'}",
        f"cpus_per_rank: {max(best.num_cpus // ranks, 1)}   # {best.num_cpus} cores a node",
    ]
    if not best.num_gpus:
        lines += ["gpus_per_node: 0", "mem: null"]
    if best.limit_min is not None:
        lines.append(
            f"time_limit_min: {best.limit_min}   # the longest of the partition; a job requeues itself"
        )
    return "".join(f"{line}\n" for line in lines)
