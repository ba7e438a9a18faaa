"""How many ranks a command starts, and on which machines."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from trainer.config.cluster import ClusterConfig
from trainer.config.many import many
from trainer.dist.hosts import parse_hostfile
from trainer.errors import ConfigError, TopologyError
from trainer.start.local import free_port
from trainer.start.remote import Hosts


def count_ranks(cluster: ClusterConfig) -> int:
    """Return the ranks of this machine: as asked, else one a GPU, else one.

    Raises:
        TopologyError: More are asked for than there are visible GPUs.
    """
    import torch

    num_gpus = torch.cuda.device_count()
    asked = cluster.ranks_per_node
    if asked > num_gpus > 0 and os.environ.get("DS_ACCELERATOR") != "cpu":
        raise TopologyError(
            f"`cluster.ranks_per_node` must be at most the {many(num_gpus, 'GPU')} that this process sees, but is "
            f"{asked} instead. Ask for fewer, or name more of them in CUDA_VISIBLE_DEVICES."
        )
    return asked or max(num_gpus, 1)


def with_hosts(cluster: ClusterConfig) -> tuple[ClusterConfig, Hosts | None]:
    """Take nodes and ranks from the hostfile; return the hosts beside the section, None without one.

    Raises:
        ConfigError: There is no such file.
        TopologyError: It cannot be used.
    """
    if cluster.hostfile is None:
        return cluster, None
    path = Path(cluster.hostfile).expanduser().absolute()
    try:
        hosts = parse_hostfile(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"`cluster.hostfile` must be a file of HOST slots=N lines, but {path} cannot be read: {error}. Set "
            "cluster.hostfile=FILE."
        ) from error
    num_ranks = next(iter(hosts.values()))
    port = cluster.master_port or free_port()
    found = dataclasses.replace(
        cluster, hostfile=str(path), num_nodes=len(hosts), ranks_per_node=num_ranks, master_port=port
    )
    return found, Hosts(list(hosts), num_ranks, path, cluster.deepspeed_runner, port, cluster.cpus_per_rank)
