"""Every rank hears at once when another fails, dies or stands still, so that nobody waits in a collective for long.

A connection from every rank to the first one is open as long as the ranks work together. The kernel closes it when a
process ends, however it ends; one that fails says why before. Gloo and NCCL notice neither while they wait. Over it
every rank says again and again where its main thread is and since when: rank 0 looks for whom all wait, and the others
look at rank 0. Whoever is at fault is named, all ranks write their stacks, and all end with a code that starts the job
again. A rank that hears nothing any more is ended by its warden.
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
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from trainer.dist.blame import Beat, Heard, blame, sentence, silent, table
from trainer.dist.progress import PROGRESS, Limits, Progress
from trainer.dist.stacks import Stacks, main_thread_at
from trainer.dist.warden import Warden
from trainer.errors import Exit

_LOG = logging.getLogger(__name__)

CONNECT_S = 60.0
STRANGER_S = 5.0
"""Whoever connects and says nothing for so long is none of the ranks."""
GRACE_S = 2.0
"""An error that all ranks agreed on ends each of them by itself."""
LAST_S = 10.0
"""A rank that is to end and is still there is ended from outside."""
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""Seconds and tries after which a node that is gone without a word counts as gone."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The end of a rank that ends all."""

    rank: int
    code: int
    text: str
    is_hang: bool = False
    """Every rank writes where it is before it ends."""


@dataclass(frozen=True, slots=True)
class Watching:
    """How ranks watch each other."""

    limits: Limits
    beat_s: float
    on_end: Callable[[int], None] = lambda code: None
    """Called with the exit code before this process is ended by what it hears."""
    warden: Warden | None = None
    progress: Progress = field(default_factory=lambda: PROGRESS)


class Watch:
    """This rank's ear for the others. Rank 0 listens to all of them and passes on what it hears."""

    def __init__(self, rank: int, peers: dict[int, socket.socket], watching: Watching | None = None) -> None:
        """Take the connection to rank 0, or on rank 0 those to all others, and begin to listen.

        Args:
            watching: None: only of failures and deaths, not of a rank that stands still.
        """
        self._rank = rank
        self._peers = peers
        self._watching = watching
        self._lock = threading.Lock()
        self._leaving = threading.Event()
        self.heard: Failure | None = None
        self._has_heard = threading.Event()
        self.stacks = Stacks(rank)
        self._beats: dict[int, tuple[Beat, float]] = {}
        """The newest of every rank that is heard here, and when."""
        self._last_round = time.monotonic()
        if watching is not None:
            watching.progress.on_phase = self._beat
            self._beat()
        self._thread = threading.Thread(target=self._listen, name="watch", daemon=True)
        self._thread.start()

    @property
    def is_alone(self) -> bool:
        """Tell whether there is no other rank."""
        return not self._peers

    def fail(self, code: int, text: str) -> None:
        """Tell all ranks that this one fails; they end with its code within seconds."""
        self._tell(Failure(self._rank, code, text))
        self._stop_watching()

    def leave(self) -> None:
        """Tell all ranks that this one is done."""
        self._stop_watching()
        self._send(b'{"bye": true}\n', self._peers)

    def wait_for_failure(self, timeout_s: float) -> Failure | None:
        """Return the failure of another rank, which may be why a collective broke; None when there is none."""
        self._has_heard.wait(timeout_s)
        return self.heard

    def wait_for_end(self) -> None:
        """Let the watch end this process, with the code of a hang: what broke is a consequence of that."""
        self._thread.join(GRACE_S + LAST_S)

    def _stop_watching(self) -> None:
        self._leaving.set()
        if self._watching is not None:
            self._watching.progress.on_phase = lambda: None
            self._watching.progress.end()
            if self._watching.warden is not None:
                self._watching.warden.allow(None)
        self.stacks.close()

    def _listen(self) -> None:
        buffers = dict.fromkeys(self._peers, b"")
        with selectors.DefaultSelector() as selector:
            for rank, connection in self._peers.items():
                selector.register(connection, selectors.EVENT_READ, rank)
            warden = None if self._watching is None else self._watching.warden
            if warden is not None:
                selector.register(warden.told, selectors.EVENT_READ, warden)
            while buffers or (self._watching is not None and not self._leaving.is_set()):
                events = selector.select(self._pause_s())
                failure: Failure | None = None
                while events and failure is None:
                    found = [self._read(selector, key, buffers) for key, _ in events]
                    failure = next((one for one in found if one is not None), None)
                    # All that has come is read before anybody is blamed for silence.
                    events = selector.select(0)
                if (failure := failure or self._look_around()) is not None:
                    self._take(failure)
                    return

    def _read(
        self, selector: selectors.BaseSelector, key: selectors.SelectorKey, buffers: dict[int, bytes]
    ) -> Failure | None:
        """Take what a rank, or this one's warden, has sent; return the failure that it tells of."""
        if isinstance(key.data, Warden):
            return self._after_stop(selector, key.data)
        rank = key.data
        data = _receive(self._peers[rank])
        *lines, buffers[rank] = (buffers[rank] + data).split(b"\n")
        records = [json.loads(line) for line in lines]
        if not data or any("bye" in record for record in records):
            selector.unregister(key.fileobj)
            del buffers[rank]
            self._beats.pop(rank, None)
        for record in records:
            if "rank" in record:
                return Failure(**record)
            if "beat" in record and rank in buffers:
                self._beats[rank] = Beat(**record["beat"]), time.monotonic()
        if not data and not lines:
            return Failure(rank, Exit.died, f"Rank {rank} is gone without a word (killed, or its node)")
        return None

    def _after_stop(self, selector: selectors.BaseSelector, warden: Warden) -> Failure | None:
        """Return that this rank was stopped for longer than a step may take: the others waited for it."""
        selector.unregister(warden.told)  # it says one thing, and ends
        seconds = warden.stopped_s()
        if seconds is None:
            return None
        text = f"Rank {self._rank} was stopped by a signal (SIGSTOP) for {seconds:.0f} s while others wait for it"
        return Failure(self._rank, Exit.preempted, text, is_hang=True)

    def _pause_s(self) -> float | None:
        """Return how long to wait for what others say; None without an end."""
        if self._watching is None:
            return None
        return max(self._last_round + self._watching.beat_s - time.monotonic(), 0.0)

    def _look_around(self) -> Failure | None:
        """Say where this rank is; return the failure where somebody keeps the others waiting."""
        watching = self._watching
        if watching is None or self._leaving.is_set() or self._pause_s():
            return None
        now = time.monotonic()
        late_s = now - self._last_round - watching.beat_s
        self._last_round = now
        if late_s > 2 * watching.beat_s:  # this process stood still as a whole: a suspended job or machine
            watching.progress.forgive(late_s)
            # What others said meanwhile has been read by now.
            self._beats = {
                rank: (beat, min(when + late_s, now)) for rank, (beat, when) in self._beats.items()
            }
        self._beat()
        if watching.progress.place is None:
            return None
        now = time.monotonic()
        heard = {rank: Heard(beat, now - when) for rank, (beat, when) in dict(self._beats).items()}
        # Whoever hears rank 0 alone cannot tell who is behind: only that it is silent.
        found = silent(heard, watching.beat_s) if self._rank else blame(heard, watching.beat_s)
        if not found:
            return None
        for line in table(heard):
            _LOG.info("%s", line)
        return Failure(found[0], Exit.preempted, sentence(found, heard, watching.beat_s), is_hang=True)

    def _beat(self) -> None:
        """Say where this rank is: to rank 0, or on rank 0 to all; and to its warden that it runs."""
        watching = self._watching
        if watching is None or (place := watching.progress.place) is None:
            return
        if self._leaving.is_set() or self.heard is not None:
            return
        limit_s = watching.progress.limit_s(watching.limits)
        # Where a place may take long, a rank that is stopped need not: rank 0 sees to those that are in a step.
        stopped_s = watching.progress.step_limit_s(watching.limits)
        where, waits = main_thread_at()
        age_s = time.monotonic() - place.since
        beat = Beat(place.phase.value, place.step, place.entry, place.mark, age_s, limit_s, where, waits)
        self._beats[self._rank] = beat, time.monotonic()
        self._send(json.dumps({"beat": asdict(beat)}).encode() + b"\n", self._peers)
        if watching.warden is not None:
            watching.warden.allow(limit_s + LAST_S, stopped_s if stopped_s < limit_s else None)

    def _take(self, failure: Failure) -> None:
        """Pass a failure on and end with it, unless this rank is about to end by itself."""
        self.heard = failure
        if self._leaving.is_set():
            return
        self._has_heard.set()
        # Rank 0 passes on what it hears; of rank 0 itself it is told by those who found it silent, for when it goes on;
        # and a rank that was stopped tells of itself.
        if self._rank == 0 or failure.rank in (0, self._rank):
            self._tell(failure)
        if failure.is_hang:
            self._write_stacks(failure)
        if self._leaving.wait(GRACE_S):
            return
        self._make_sure()
        ends = "" if failure.code == Exit.mendable else ". This rank ends with it."
        _LOG.info("Rank %d failed: %s%s", failure.rank, failure.text, ends)
        if self._watching is not None:
            self._watching.on_end(failure.code)
        if self._rank == (1 if failure.is_hang and failure.rank == 0 and not self.is_alone else 0):
            print(f"[rank {failure.rank}] Error: {failure.text}", file=sys.stderr, flush=True)
        logging.shutdown()
        os._exit(failure.code)

    def _write_stacks(self, failure: Failure) -> None:
        self._make_sure()
        mine = self._beats.get(self._rank)
        lines = [failure.text] if mine is None else [failure.text, *table({self._rank: Heard(mine[0], 0.0)})]
        self.stacks.write("\n".join(lines))

    def _make_sure(self) -> None:
        """See to it that this process ends: a main thread that hangs may hold what is needed to say why."""
        self.stacks.end_after(LAST_S)
        if self._watching is not None and self._watching.warden is not None:
            self._watching.warden.allow(LAST_S)

    def _tell(self, failure: Failure) -> None:
        others = {rank: peer for rank, peer in self._peers.items() if rank != failure.rank or failure.is_hang}
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
