"""The processes of a check meet at one store and leave messages there, each with a time limit.

No collective is used here: of a collective that hangs nobody can say who is missing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from torch.distributed import (  # type: ignore[attr-defined]
    DistError,
    HashStore,
    PrefixStore,
    TCPStore,
)

from trainer.dist.env import RankEnv
from trainer.errors import TopologyError

POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Meeting:
    """An open store, and who this process is."""

    env: RankEnv
    node: str
    address: str
    store: Any
    """torch's; of this check alone."""
    deadline: float
    """On the monotonic clock."""

    def left_s(self, keep_s: float = 0.0) -> float:
        """Return the seconds until the deadline, less some to keep for what follows; never less than a moment."""
        return max(self.deadline - keep_s - time.monotonic(), 0.01)

    def enter(self, phase: str) -> None:
        """Tell what this process begins, so that others can say where it hangs."""
        self.tell(f"at/{self.env.rank}", phase)

    def tell(self, key: str, text: str) -> None:
        """Leave a message.

        Raises:
            TopologyError: The first process, in which the store lives, is gone.
        """
        try:
            self.store.set(key, text)
        except DistError as error:
            raise TopologyError(
                f"`rendezvous of {self.node}` must reach the first process at {self.address}, but that is gone instead "
                f"({_short(error)}). See what it says."
            ) from error

    def hear(self, key: str, wait_s: float) -> str:
        """Return a message of the first process.

        Raises:
            TopologyError: It did not come.
        """
        try:
            self.store.wait([key], timedelta(seconds=wait_s))
            return str(self.store.get(key).decode())
        except DistError as error:
            raise TopologyError(
                f"`rendezvous of {self.node}` must hear from the first process at {self.address}, but did not within "
                f"{wait_s:.0f} s instead ({_short(error)}). See what that process says."
            ) from error

    def collect(self, name: str, ranks: Sequence[int], wait_s: float) -> dict[int, str]:
        """Return the messages of these ranks, of as many as left one in time."""
        end = time.monotonic() + wait_s
        found: dict[int, str] = {}
        while True:
            for rank in ranks:
                key = f"{name}/{rank}"
                if rank not in found and self.store.check([key]):
                    found[rank] = self.store.get(key).decode()
            if len(found) == len(ranks) or time.monotonic() > end:
                return found
            time.sleep(POLL_S)

    def room(self, name: str) -> Any:
        """Return a part of the store for others' keys."""
        return PrefixStore(name, self.store)

    def phases(self) -> dict[int, str]:
        """Return where each rank that came stands."""
        keys = {rank: f"at/{rank}" for rank in range(self.env.world_size)}
        return {rank: self.store.get(key).decode() for rank, key in keys.items() if self.store.check([key])}


def open_meeting(env: RankEnv, node: str, wait_s: float, deadline: float) -> Meeting:
    """Open the store on the first node, or reach it.

    Ranks:
        Every process; none waits for another but for the first.

    Raises:
        TopologyError: The first node does not answer.
    """
    if env.world_size == 1:
        return Meeting(env, node, "itself", HashStore(), deadline)
    address = f"{env.master_addr}:{env.master_port}"
    # torchrun itself listens on the port.
    is_host = env.is_first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        store = TCPStore(
            env.master_addr,
            env.master_port,
            is_master=is_host,
            timeout=timedelta(seconds=wait_s),
            wait_for_workers=False,
        )
    except (DistError, RuntimeError) as error:
        raise TopologyError(
            f"`rendezvous of {node}` must reach the first process at {address} within {wait_s:.0f} s, but does not "
            f"({_short(error)}). Look at the network and firewall of {node}, and at what the first node says."
        ) from error
    return Meeting(env, node, address, PrefixStore(_prefix(), store), deadline)


def _prefix() -> str:
    """Return a name for the keys; torchrun keeps its store when it starts the processes again."""
    return f"preflight/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def look_in(env: RankEnv) -> dict[int, str]:
    """Return where all ranks stand, through a connection of its own: the other may be in use by what hangs."""
    is_agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if env.world_size == 1 or not (env.is_first or is_agents):
        return {}
    try:
        address = f"{env.master_addr}:{env.master_port}"
        wait = timedelta(seconds=2)
        store = TCPStore(env.master_addr, env.master_port, timeout=wait, wait_for_workers=False)
        meeting = Meeting(env, "", address, PrefixStore(_prefix(), store), 0.0)
        return meeting.phases()
    except (DistError, RuntimeError):
        return {}


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
