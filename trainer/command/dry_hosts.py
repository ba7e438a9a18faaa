"""What a dry run says of a training that a hostfile's nodes would be started for."""

from __future__ import annotations

import shlex
from pathlib import Path

from trainer.config.many import many
from trainer.config.schema import RunConfig
from trainer.config.snapshot import config_path
from trainer.start.ranks import with_hosts


def lines_of_hosts(config: RunConfig) -> list[str]:
    """Return as YAML comments the ranks of each host and the launcher's command lines; none without a hostfile.

    No host is asked anything.

    Raises:
        TrainerError: The hostfile cannot be read or used.
    """
    cluster, hosts = with_hosts(config.cluster)
    if hosts is None:
        return []
    verbs = ["doctor", "train"] if cluster.preflight.enabled and len(hosts.names) > 1 else ["train"]
    frozen = config_path(Path(config.run_dir))
    names = ", ".join(f"{name} {hosts.slots}" for name in hosts.names)
    commands = [shlex.join(hosts.command(verb, frozen, {})) for verb in verbs]
    return [
        f"# {many(hosts.num_ranks, 'rank')} on {many(len(hosts.names), 'host')} of {hosts.file}: {names}.",
        f"# Without --dry-run the configuration is frozen in {frozen}, and this is started:",
        *(f"#   {command}" for command in commands),
    ]
