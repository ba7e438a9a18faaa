"""Checkpoints of a run: saved, pruned, and one of them taken over when the run goes on.

Collective everywhere: every rank, same order.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import platform
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.checkpoint.best import Best, best_of
from trainer.checkpoint.commit import Commit, WrittenFile, attempt, seal
from trainer.checkpoint.layout import FINGERPRINT, STATE, rng_file
from trainer.checkpoint.manifest import Lineage, Manifest
from trainer.checkpoint.pending import HostCopies, PendingWrite
from trainer.checkpoint.prune import Retention, prune
from trainer.checkpoint.shard_file import WEIGHT
from trainer.checkpoint.shards import write_shards
from trainer.checkpoint.space import BYTES_PER_PARAMETER
from trainer.checkpoint.state import TrainState, write_state
from trainer.config.train import CheckpointConfig
from trainer.dist.seed import capture_rng
from trainer.engine.policy import Policy
from trainer.errors import CheckpointError
from trainer.evaluate.proofs.fingerprint import (
    take_fingerprint,
    write_fingerprint,
)
from trainer.evaluate.proofs.frozen import FrozenCheck
from trainer.metrics.device import describe_device
from trainer.run.resumer import Resumer, RunIdentity
from trainer.runtime.host_memory import bytes_available

_LOG = logging.getLogger(__name__)

MOST_STEPS = 64
"""Between two tries to write what could not be written."""
_ROOM = 1.25
"""Times the size of a copy that must be free in host memory."""


class Saver:
    """Keeps a run safe."""

    def __init__(
        self,
        policy: Policy,
        run_dir: Path,
        options: CheckpointConfig,
        identity: RunIdentity,
        probe: np.ndarray,
        frozen: FrozenCheck | None,
        seed: int,
    ) -> None:
        """Take what is saved and where, the text of its fingerprint, and the check of what must not move.

        Args:
            seed: Of the run, for random numbers where those of a checkpoint are of other ranks.
        """
        self._policy = policy
        self._mesh = policy.mesh
        self._engine = policy.engine
        self._run_dir = run_dir
        self._options = options
        self._identity = identity
        self._probe = probe
        self._frozen = frozen
        self._resumer = Resumer(policy, run_dir, identity, seed)
        self._copies = HostCopies()
        self._pending: _Pending | None = None
        self._num_failed = 0
        self._again_at: int | None = None
        self._lineage = Lineage(self._mesh.broadcast(uuid.uuid4().hex[:12]), 1, None)

    @property
    def is_written(self) -> bool:
        """Tell whether this rank has written what was begun, so that it can be settled once all have."""
        return self._pending is not None and self._pending.write.is_done

    @property
    def writing_s(self) -> float:
        """Return the seconds for which a save has gone on that is not settled; 0 without one."""
        return 0.0 if self._pending is None else time.perf_counter() - self._pending.started

    def begin(self, state: TrainState, best_before: Best, in_background: bool) -> str | None:
        """Begin to save; return why nothing is saved of an unsound model. `settle` must follow. Collective.

        Never one whose frozen parameters moved. All collectives come before the first file: a rank that cannot write
        says so to all, and nobody waits.

        Args:
            best_before: What was the best before it, and is again if it cannot be written.
            in_background: Write a copy while training goes on; else the engine's own tensors, all of it before this
                returns.
        """
        started = time.perf_counter()
        if self._frozen is not None:
            self._frozen.check()
        fingerprint = take_fingerprint(self._policy, self._probe)
        is_finite = fingerprint.is_finite and self._engine.has_finite_weights()
        if not all(self._mesh.gather(is_finite)):
            return "the weights, or the model's answers, are not finite"
        held = self._engine.held()
        fragments = self._copies.take(held.fragments) if in_background else held.fragments
        state, rng = copy.deepcopy(state), json.dumps(capture_rng())
        manifest = self._manifest(state)
        begun = Commit(self._run_dir, manifest, self._mesh)

        def write() -> list[WrittenFile]:
            staging = begun.staging
            files = write_shards(staging, self._mesh.rank, fragments, held.facts)
            rng_path = staging / rng_file(self._mesh.rank)
            rng_path.write_text(rng, encoding="utf-8")
            files.append(seal(rng_path))
            if self._mesh.is_first:
                write_state(staging / STATE, state)
                write_fingerprint(staging / FINGERPRINT, fingerprint)
                files += [seal(staging / STATE), seal(staging / FINGERPRINT)]
            return files

        pending = PendingWrite(write)
        if not in_background:
            pending.wait()
        self._pending = _Pending(
            begun, manifest, pending, state, best_before, started, time.perf_counter() - started
        )
        return None

    def settle(self, stands_on: Callable[[], None] = lambda: None) -> Saved | None:
        """Wait for what was begun and put it in its place, and remove superseded ones; None where nothing was begun.

        Collective: every rank.

        Args:
            stands_on: Brings to the disk what must be there before a checkpoint is; nothing is committed where it
                raises on any rank.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        problem = None
        try:
            written, failure = pending.write.wait()
            pending.begun.finish(written, failure or attempt(stands_on)[1])
        except CheckpointError as error:
            problem = str(error)
        if problem is None:
            self._num_failed, self._again_at = 0, None
        if problem is None and self._mesh.is_first:
            best_step = pending.state.best_step if self._options.keep_best else None
            retention = Retention(self._options.keep_last, self._options.keep_every_steps, best_step)
            prune(self._run_dir, pending.manifest, retention)
        seconds = time.perf_counter() - pending.started
        return Saved(pending.state, seconds, pending.stall_s, problem, pending.best_before)

    def try_again(self, step: int) -> int:
        """Return the step after which what could not be written is tried again: later after every failure."""
        self._num_failed += 1
        self._again_at = step + min(2 ** (self._num_failed - 1), MOST_STEPS)
        return self._again_at

    def is_due_again(self, step: int) -> bool:
        """Tell whether a save that failed is to be tried again after a step."""
        return self._again_at is not None and step >= self._again_at

    def save(self, state: TrainState) -> str | None:
        """Commit a checkpoint; return why nothing was saved of an unsound model. Collective: every rank.

        Raises:
            CheckpointError: It cannot be written.
        """
        why = self.begin(state, best_of(state), in_background=False)
        if why is None and (saved := self.settle()) is not None and saved.problem is not None:
            raise CheckpointError(saved.problem)
        return why

    def has_room_for_copy(self) -> bool:
        """Tell whether the host memory of every node has room for a copy of what its ranks save. Collective."""
        # Before the first step there are weights alone; their moments come with it.
        weights = (
            fragment.values.numel() for fragment in self._engine.held().fragments if fragment.kind == WEIGHT
        )
        need = sum(weights) * BYTES_PER_PARAMETER
        found = self._mesh.gather((platform.node(), need, bytes_available()))
        nodes = {name: (0, left) for name, _, left in found}
        for name, size, left in found:
            so_far, least = nodes[name]
            nodes[name] = (so_far + size, min(least, left))
        short = {name: pair for name, pair in nodes.items() if pair[0] * _ROOM > pair[1]}
        if short and self._mesh.is_first:
            name, (size, left) = next(iter(short.items()))
            _LOG.warning(
                "Saves are not made beside the training: %s has %.1f GB of host memory left, and a copy takes %.1f GB.",
                name,
                left / 1e9,
                size / 1e9,
            )
        return not short

    def reserve(self) -> None:
        """Get the memory for copies beside the training, once; after the first step, which makes the moments."""
        if not self._copies.is_reserved:
            self._copies.reserve(self._engine.held().fragments)

    def resume(self, goes_on: bool) -> TrainState:
        """Load what the run directory holds and return where the run stands; as `Resumer.resume`. Collective."""
        if not self._options.enabled:
            return TrainState()
        state, self._lineage = self._resumer.resume(goes_on, self._lineage)
        return state

    def go_back(self, most_step: int) -> TrainState | None:
        """Load an earlier checkpoint; as `Resumer.go_back`. Collective: every rank."""
        found = self._resumer.go_back(most_step)
        if found is None:
            return None
        state, name = found
        self._lineage = dataclasses.replace(self._lineage, parent=name)
        return state

    def _manifest(self, state: TrainState) -> Manifest:
        facts: dict[str, Any] = {"device": describe_device(), "base": self._identity.base_digest}
        return Manifest(
            step=state.step,
            world_size=self._mesh.num_ranks,
            zero_stage=self._engine.stage,
            config_digest=self._identity.config_digest,
            data_digest=self._identity.data_digest,
            lineage=self._lineage,
            files={},
            facts=facts,
        )


@dataclass(frozen=True, slots=True)
class Saved:
    """What came of a save."""

    state: TrainState
    """Where the run stood when it began."""
    seconds: float
    """Until it was in its place."""
    stall_s: float
    """For which steps waited."""
    problem: str | None
    """Why it could not be written; the checkpoints before it are untouched."""
    best_before: Best = ("", None, None)
    """What was the best before it."""


@dataclass(frozen=True, slots=True)
class _Pending:
    """What was begun, and is not settled."""

    begun: Commit
    manifest: Manifest
    write: PendingWrite
    state: TrainState
    best_before: Best
    started: float
    stall_s: float
