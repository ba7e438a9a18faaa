"""Every rank hears at once when another fails or dies, so that nobody waits in a collective until its timeout.

A connection from every rank to the first one is open as long as the ranks work together. The kernel closes it when a
process ends, however it ends; one that fails says why before. Gloo and NCCL notice neither while they wait.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass

from trainer.errors import Exit

_LOG = logging.getLogger(__name__)

CONNECT_S = 60.0
STRANGER_S = 5.0
"""Whoever connects and says nothing for so long is none of the ranks."""
GRACE_S = 2.0
"""An error that all ranks agreed on ends each of them by itself."""
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""Seconds and tries after which a node that is gone without a word counts as gone."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The end of a rank that ends all."""

    rank: int
    code: int
    text: str


class Watch:
    """This rank's ear for the others. Rank 0 listens to all of them and passes on what it hears."""

    def __init__(self, rank: int, peers: dict[int, socket.socket]) -> None:
        """Take the connection to rank 0, or on rank 0 those to all others, and begin to listen."""
        self._rank = rank
        self._peers = peers
        self._lock = threading.Lock()
        self._leaving = threading.Event()
        self.heard: Failure | None = None
        self._has_heard = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="watch", daemon=True)
        self._thread.start()

    def fail(self, code: int, text: str) -> None:
        """Tell all ranks that this one fails; they end with its code within seconds."""
        self._tell(Failure(self._rank, code, text))
        self._leaving.set()

    def leave(self) -> None:
        """Tell all ranks that this one is done."""
        self._leaving.set()
        self._send(b'{"bye": true}\n', self._peers)

    def wait_for_failure(self, timeout_s: float) -> Failure | None:
        """Return the failure of another rank, which may be why a collective broke; None when there is none."""
        self._has_heard.wait(timeout_s)
        return self.heard

    def _listen(self) -> None:
        buffers = dict.fromkeys(self._peers, b"")
        with selectors.DefaultSelector() as selector:
            for rank, connection in self._peers.items():
                selector.register(connection, selectors.EVENT_READ, rank)
            while buffers:
                for key, _ in selector.select():
                    rank = key.data
                    data = _receive(self._peers[rank])
                    buffers[rank] += data
                    *lines, buffers[rank] = buffers[rank].split(b"\n")
                    if not data or any(b"bye" in line for line in lines):
                        selector.unregister(key.fileobj)
                        del buffers[rank]
                    failures = [Failure(**record) for line in lines if "rank" in (record := json.loads(line))]
                    if not data and not lines:
                        failures = [
                            Failure(
                                rank, Exit.died, f"Rank {rank} is gone without a word (killed, or its node)"
                            )
                        ]
                    if failures:
                        self._take(failures[0])
                        return

    def _take(self, failure: Failure) -> None:
        """Pass a failure on and end with it, unless this rank is about to end by itself."""
        self.heard = failure
        if self._leaving.is_set():
            return
        self._has_heard.set()
        if self._rank == 0:
            self._tell(failure)
        if self._leaving.wait(GRACE_S):
            return
        sentence = f"{failure.text}. This rank ends with it." if failure.code == Exit.died else failure.text
        _LOG.info("Rank %d failed: %s", failure.rank, sentence)
        if self._rank == 0:
            print(f"[rank {failure.rank}] Error: {failure.text}", file=sys.stderr, flush=True)
        logging.shutdown()
        os._exit(failure.code)

    def _tell(self, failure: Failure) -> None:
        others = {rank: peer for rank, peer in self._peers.items() if rank != failure.rank}
        self._send(json.dumps(asdict(failure)).encode() + b"\n", others)

    def _send(self, line: bytes, peers: dict[int, socket.socket]) -> None:
        with self._lock:
            for peer in peers.values():
                with contextlib.suppress(OSError):  # it is gone itself
                    peer.sendall(line)


def listen(num_others: int) -> tuple[socket.socket, int]:
    """Open the door of rank 0 and return it with its port."""
    door: socket.socket | None = None
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # IPv6 may be switched off all the same
            door = socket.create_server(
                ("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=num_others
            )
    door = door or socket.create_server(("", 0), backlog=num_others)
    return door, int(door.getsockname()[1])


def admit(door: socket.socket, token: str, num_others: int) -> dict[int, socket.socket]:
    """Take in the other ranks, which know the token; rank 0.

    Raises:
        OSError: They did not come in time.
    """
    peers: dict[int, socket.socket] = {}
    deadline = time.monotonic() + CONNECT_S
    with door:
        while len(peers) < num_others:
            door.settimeout(max(deadline - time.monotonic(), 0.01))
            connection, _ = door.accept()
            connection.settimeout(STRANGER_S)
            said: list[str] = []
            with contextlib.suppress(OSError), connection.makefile("rb") as file:
                said = file.readline(200).decode(errors="replace").split()
            if len(said) != 2 or said[0] != token:
                connection.close()
                continue
            peers[int(said[1])] = _kept_alive(connection)
    return peers


def connect(address: str, port: int, token: str, rank: int) -> dict[int, socket.socket]:
    """Connect to rank 0; the other ranks.

    Raises:
        OSError: It cannot be reached.
    """
    connection = socket.create_connection((address, port), timeout=CONNECT_S)
    connection.sendall(f"{token} {rank}\n".encode())
    return {0: _kept_alive(connection)}


def _kept_alive(connection: socket.socket) -> socket.socket:
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except OSError:
        return b""
