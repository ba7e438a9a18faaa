"""Open and close the process group, and the few collectives everything else is made of.

Tensors of the model never pass here; DeepSpeed moves those.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as torch_dist

from trainer.dist.env import RankEnv
from trainer.dist.rendezvous import check_rendezvous
from trainer.dist.stacks import record_collectives
from trainer.dist.watch import GRACE_S, Watch, Watching, admit, connect, listen
from trainer.errors import Exit, RankLost, TopologyError, TrainerError

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Axis:
    """Where this rank stands along an axis of the mesh, and how many places the axis has."""

    rank: int
    size: int

    @property
    def is_first(self) -> bool:
        """Tell whether this is the first place."""
        return self.rank == 0


ONE_PLACE = Axis(0, 1)
"""Along an axis that is not there."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """All ranks of a run and the axes along which they differ. Its methods are about all ranks."""

    rank: int
    """Among all ranks; names files and speaks for a rank."""
    num_ranks: int
    local_rank: int
    data: Axis
    """Ranks that see different packs: what spreads data, or averages over it, counts along this axis."""
    device: torch.device
    """What this rank computes on."""
    host_group: Any = None
    """Gloo group for objects and slow waits, so that file work never meets an NCCL timeout."""
    sequence: Axis = ONE_PLACE
    """Neighbours that share each pack, and their places in it."""
    sequence_group: Any = None
    """Of the ranks along that axis, for tensors; None where it has one place."""

    @property
    def is_first(self) -> bool:
        """Tell whether this is the rank that writes and prints."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Add up numbers over all ranks. Collective: every rank, same length.

        Units: float64 on the host, so token counts stay exact up to 2^53.
        """
        if self.num_ranks == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        torch_dist.all_reduce(tensor, group=self.host_group)
        return [float(value) for value in tensor.tolist()]

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's small object, on every rank. Collective."""
        if self.num_ranks == 1:
            return [value]
        gathered: list[Any] = [None] * self.num_ranks
        torch_dist.all_gather_object(gathered, value, group=self.host_group)
        return gathered

    def gather_data(self, value: Any) -> list[Any]:
        """Return a small object of every place on the data axis, of the first rank there. Collective: every rank."""
        return self.gather(value)[:: self.sequence.size]

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's small object on every rank. Collective."""
        if self.num_ranks == 1:
            return value
        box = [value]
        torch_dist.broadcast_object_list(box, src=0, group=self.host_group)
        return box[0]

    def from_first(self, make: Callable[[], Any]) -> Any:
        """Run a function on rank 0 and return its small result, or raise its error, on every rank. Collective."""
        result: Any = None
        error: Exception | None = None
        if self.is_first:
            try:
                result = make()
            except Exception as problem:
                error = problem
        error = self.broadcast(error)
        if error is not None:
            raise error
        return self.broadcast(result)

    def barrier(self) -> None:
        """Wait for all ranks. Collective."""
        if self.num_ranks > 1:
            torch_dist.barrier(group=self.host_group)


def alone(device: torch.device) -> Mesh:
    """Return the mesh of a process that has no other beside it."""
    return Mesh(0, 1, 0, Axis(0, 1), device)


def _is_on_gpu(env: RankEnv) -> bool:
    """Tell whether this rank computes on a GPU: wherever it sees one.

    Raises:
        TopologyError: It sees too few.
    """
    if not torch.cuda.is_available():
        return False
    if env.local_rank >= torch.cuda.device_count():
        raise TopologyError(
            f"A node must have a GPU for each of its ranks, but rank {env.rank} is number {env.local_rank + 1} on its "
            f"node and sees {torch.cuda.device_count()}. Start fewer ranks on a node, or hide all GPUs "
            "(CUDA_VISIBLE_DEVICES=-1) to train on the processor."
        )
    return True


def open_mesh(
    env: RankEnv, timeout_s: int, watching: Watching | None = None, sequence_parallel: int = 1
) -> Mesh:
    """Join the process group: NCCL on GPUs, gloo on CPUs. Collective: every rank.

    Args:
        watching: How ranks watch each other for one that stands still; None: only for failures and deaths.
        sequence_parallel: Ranks that share each pack; divides all.
    Raises:
        TopologyError: More ranks on this machine than it shows GPUs, or a rendezvous that cannot be.
    """
    deepspeed = import_deepspeed()
    check_rendezvous(env, os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True")
    on_gpu = _is_on_gpu(env)
    os.environ.update(
        RANK=str(env.rank),
        LOCAL_RANK=str(env.local_rank),
        WORLD_SIZE=str(env.world_size),
        MASTER_ADDR=env.master_addr,
        MASTER_PORT=str(env.master_port),
    )
    device = torch.device("cuda", env.local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        record_collectives()
        torch.cuda.set_device(device)
    else:
        _use_plain_gloo()
    timeout = timedelta(seconds=timeout_s)
    deepspeed.init_distributed(
        dist_backend="nccl" if on_gpu else "gloo",
        auto_mpi_discovery=False,
        timeout=timeout,
        verbose=False,
    )
    host_group = torch_dist.new_group(backend="gloo", timeout=timeout) if env.world_size > 1 else None
    data = Axis(env.rank, env.world_size)
    mesh = Mesh(env.rank, env.world_size, env.local_rank, data, device, host_group)
    mesh = with_sequence(mesh, sequence_parallel, timeout)
    if env.world_size > 1:
        _watch_all(mesh, env.master_addr, watching)
    elif watching is not None:
        _watches.append(Watch(0, {}, watching))
    return mesh


def with_sequence(mesh: Mesh, size: int, timeout: timedelta) -> Mesh:
    """Let every `size` neighbours of a mesh whose one axis is data share their packs. Collective: every rank.

    Neighbours, so that they are on one node where a node has as many ranks: they exchange activations in every layer.
    """
    if size == 1:
        return mesh
    firsts = range(0, mesh.num_ranks, size)
    # Every rank makes every group, in the same order.
    groups = [torch_dist.new_group([*range(first, first + size)], timeout=timeout) for first in firsts]
    place, rank = divmod(mesh.rank, size)
    return replace(
        mesh,
        data=Axis(place, mesh.num_ranks // size),
        sequence=Axis(rank, size),
        sequence_group=groups[place],
    )


def keep_stacks_in(folder: Path) -> None:
    """Let this rank write its stacks there when a rank stands still."""
    for watch in _watches:
        watch.stacks.keep_in(folder)


_watches: list[Watch] = []
"""Of this process: one while it is in a group."""


def _watch_all(mesh: Mesh, address: str, watching: Watching | None) -> None:
    """Let every rank hear when another fails or dies. Collective: every rank."""
    num_others = mesh.num_ranks - 1
    door: socket.socket | None = None
    port = 0
    if mesh.is_first:
        with contextlib.suppress(OSError):
            door, port = listen(num_others)
    port, token = mesh.broadcast((port, uuid.uuid4().hex))
    peers, problem = None, "rank 0 has no port for it" if not port else None
    try:
        if door is not None:
            peers = admit(door, token, num_others)
        elif port:
            peers = connect(address, port, token, mesh.rank)
    except OSError as error:
        problem = str(error)
    problems = [text for text in mesh.gather(problem) if text]
    if problems or peers is None:
        if mesh.is_first:
            _LOG.warning(
                "Ranks cannot tell each other that they fail (%s): then the others wait for "
                "cluster.comm_timeout_s, or for the launcher to end them.",
                problems[0],
            )
        for peer in (peers or {}).values():
            peer.close()
        return
    _watches.append(Watch(mesh.rank, peers, watching))


def import_deepspeed() -> Any:
    """Import DeepSpeed without MLflow, which it asks for where it is installed, for an autotuner that is not ours.

    MLflow brings pandas: 3.4 s of each rank's start, and hundreds of files from a shared disk.
    Source: `python -X importtime -m trainer train`, deepspeed 0.19.8, autotuning/autotuner.py.
    """
    is_hidden = "mlflow" not in sys.modules
    if is_hidden:
        sys.modules["mlflow"] = None  # type: ignore[assignment]
    try:
        import deepspeed
    finally:
        if is_hidden:
            del sys.modules["mlflow"]
    return deepspeed


def _use_plain_gloo() -> None:
    """Keep DeepSpeed from compiling its shared-memory all-reduce for CPU ranks.

    The build takes half a minute at best, and a rank killed during it leaves a lock file on which every
    later run of this user waits for ever (seen with deepspeed 0.19.8, torch 2.13). Gloo does the same.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _may_be_of_another(error: BaseException) -> bool:
    """Tell whether an error may be that of a collective which another rank left: all but what was found here.

    Gloo raises a plain RuntimeError, which whoever loads weights in shards takes for one of a file.
    """
    inner: BaseException | None = error
    while isinstance(inner, TrainerError):
        inner = inner.__cause__
    return isinstance(inner, RuntimeError) if isinstance(error, TrainerError) else True


def close_mesh(
    error_type: type[BaseException] | None = None,
    error: BaseException | None = None,
    traceback: TracebackType | None = None,
) -> None:
    """Leave the process group; with an error all ranks end. To be pushed on an ExitStack.

    Raises:
        TopologyError: In place of a collective's error, when it broke because another rank met what a person can mend.
        RankLost: Likewise when that rank died; the same command goes on.
    """
    watch = _watches.pop() if _watches else None
    if error is None:
        if watch is not None:
            watch.leave()
        if torch_dist.is_initialized():
            torch_dist.destroy_process_group()
        return
    # Not destroyed: NCCL would wait for what will never be done. The process ends.
    if watch is None:
        return
    if watch.is_alone:
        watch.leave()
        return
    is_mendable = isinstance(error, TrainerError)
    cause = watch.wait_for_failure(GRACE_S / 2) if _may_be_of_another(error) else None
    if cause is None:
        text = str(error) if is_mendable else f"{type(error).__name__}: {error}"
        watch.fail(Exit.mendable if is_mendable else Exit.died, text)
        return
    if cause.is_hang:
        watch.wait_for_end()
    watch.leave()
    _LOG.debug("What broke because of rank %d:", cause.rank, exc_info=error)  # for the file of the log alone
    kind = TopologyError if cause.code == Exit.mendable else RankLost
    raise kind(f"This rank ends because of rank {cause.rank}: {cause.text}") from error
