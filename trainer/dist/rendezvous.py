"""What would make ranks wait for each other for half an hour, found in a second instead. No torch."""

from __future__ import annotations

import errno
import platform
import socket

from trainer.dist.env import RankEnv
from trainer.errors import TopologyError


def check_rendezvous(env: RankEnv, store_is_open: bool = False) -> None:
    """Raise when the first node's name does not resolve here, or when its port is taken.

    Args:
        store_is_open: The launcher listens on the port itself, as torchrun does.
    """
    if env.world_size == 1:
        return
    host = platform.node()
    try:
        socket.getaddrinfo(env.master_addr, env.master_port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise TopologyError(
            f"`MASTER_ADDR` must be a name that every node resolves, but {host} does not know "
            f"'{env.master_addr}' ({error.strerror or error}). Set cluster.environment.MASTER_ADDR=ADDRESS to an "
            "address of the first node."
        ) from error
    if env.is_first and not store_is_open:
        _check_port(env.master_port, host)


def _check_port(port: int, host: str) -> None:
    with socket.socket() as probe:
        # As torch's store does it, so that a connection of the last attempt in TIME_WAIT is no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return
            raise TopologyError(
                f"`MASTER_PORT` must be free on the first node, but another process of {host} listens on {port}. "
                "Set cluster.master_port=0 to let Palimpsest choose, or another port."
            ) from error
