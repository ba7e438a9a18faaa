"""Checkpoints of a run: saved, pruned, and one of them taken over when the run goes on.

Collective everywhere: every rank, same order.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.checkpoint.commit import Written, commit, remove_staging
from trainer.checkpoint.layout import FINGERPRINT, STATE, find_checkpoints, rng_file, step_of
from trainer.checkpoint.lineage import abandon, choose
from trainer.checkpoint.manifest import Lineage, Manifest
from trainer.checkpoint.prune import Retention, prune
from trainer.checkpoint.space import check_space, num_to_come
from trainer.checkpoint.state import TrainState, read_state, write_state
from trainer.checkpoint.verify import inspect, patiently
from trainer.config.train import CheckpointConfig
from trainer.dist.seed import capture_rng, restore_rng
from trainer.engine.policy import Policy
from trainer.engine.states import read_states, seal, write_states
from trainer.errors import CheckpointError, SelfCheckError
from trainer.evaluate.proofs.fingerprint import (
    Fingerprint,
    check_same,
    read_fingerprint,
    take_fingerprint,
    write_fingerprint,
)
from trainer.evaluate.proofs.frozen import FrozenCheck
from trainer.metrics.device import describe_device

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """What a checkpoint must have been saved with to be gone on from."""

    config_digest: str
    data_digest: str
    base_digest: str | None
    """Names the frozen weights where checkpoints leave them out; else None."""


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
    ) -> None:
        """Take what is saved and where, the text of its fingerprint, and the check of what must not move."""
        self._policy = policy
        self._mesh = policy.mesh
        self._engine = policy.engine
        self._run_dir = run_dir
        self._options = options
        self._identity = identity
        self._probe = probe
        self._frozen = frozen
        self._lineage = Lineage(self._mesh.broadcast(uuid.uuid4().hex[:12]), 1, None)

    def save(self, state: TrainState) -> str | None:
        """Commit a checkpoint and remove superseded ones; return why nothing was saved of an unsound model.

        Never one whose frozen parameters moved. All collectives come before the first file: a rank that cannot write
        says so to all, and nobody waits.
        """
        if self._frozen is not None:
            self._frozen.check()
        fingerprint = take_fingerprint(self._policy, self._probe)
        is_finite = fingerprint.is_finite and self._engine.has_finite_weights()
        if not all(self._mesh.gather(is_finite)):
            return "the weights, or the model's answers, are not finite"
        states = self._engine.states()

        def write(staging: Path) -> list[Written]:
            files: list[Written] = list(write_states(states, staging))
            rng_path = staging / rng_file(self._mesh.rank)
            rng_path.write_text(json.dumps(capture_rng()), encoding="utf-8")
            files.append(seal(rng_path))
            if self._mesh.is_first:
                write_state(staging / STATE, state)
                write_fingerprint(staging / FINGERPRINT, fingerprint)
                files += [seal(staging / STATE), seal(staging / FINGERPRINT)]
            return files

        manifest = self._manifest(state)
        commit(self._run_dir, manifest, write, self._mesh)
        if self._mesh.is_first:
            best_step = state.best_step if self._options.keep_best else None
            retention = Retention(self._options.keep_last, self._options.keep_every_steps, best_step)
            prune(self._run_dir, manifest, retention)
        return None

    def resume(self, goes_on: bool) -> TrainState:
        """Load the newest checkpoint that can be used, prove it, and return where the run stands.

        Raises:
            CheckpointError: Saved by another number of ranks, ZeRO stage, configuration or data; or there are
                checkpoints, and none can be used: a run does not start over by itself.
        """
        if not self._options.enabled:
            return TrainState()
        if not goes_on:
            left = self._mesh.from_first(lambda: abandon(self._run_dir))
            if left is not None and self._mesh.is_first:
                _LOG.warning("checkpoint.resume=false: begins at step 0. What was here is kept in %s.", left)
            return TrainState()
        loaded: list[TrainState] = []

        def load(folder: Path, manifest: Manifest) -> str | None:
            self._check_resumable(folder, manifest)
            return self._load(folder, manifest, loaded)

        found = choose(self._run_dir, self._mesh, load, _LOG.warning)
        if found is None:
            return TrainState()
        folder, manifest = found
        state = loaded[-1]
        state.attempts += 1
        self._lineage = Lineage(manifest.lineage.run, state.attempts, folder.name)
        _LOG.info("Resumed %s: step %d, %d tokens seen.", folder.name, state.step, state.tokens_seen)
        return state

    def go_back(self, most_step: int) -> TrainState | None:
        """Load the newest checkpoint of at most a step, or the oldest there is; None where none can be used.

        Collective: every rank.
        """
        folders: list[Path] = self._mesh.from_first(lambda: find_checkpoints(self._run_dir))
        early = [folder for folder in folders if (step_of(folder) or 0) <= most_step]
        for folder in early or folders[::-1]:
            manifest, problem = inspect(folder, self._mesh)
            loaded: list[TrainState] = []
            if problem is None and manifest is not None:
                self._check_resumable(folder, manifest)
                problem = self._load(folder, manifest, loaded)
            if problem is None and loaded:
                self._lineage = dataclasses.replace(self._lineage, parent=folder.name)
                return loaded[-1]
            _LOG.warning("Checkpoint %s cannot be gone back to: %s.", folder.name, problem)
        return None

    def _load(self, folder: Path, manifest: Manifest, loaded: list[TrainState]) -> str | None:
        """Take a checkpoint over and add its state to `loaded`, or return why it cannot be used. Collective.

        Every file is read before the first collective, so that all ranks agree on what one cannot read.
        """
        read: _Read | None = None
        problem: str | None = None
        try:
            read = patiently(lambda: _read(folder, self._mesh.rank))
        except CheckpointError:
            raise
        except Exception as error:
            problem = f"rank {self._mesh.rank} cannot read it: {type(error).__name__}: {error}"
        if (problem := self._first_of(problem)) is not None or read is None:
            return problem
        if not read.fingerprint.is_finite or read.state.bad_steps_in_a_row:
            return "it was saved while numbers were not finite"
        self._engine.load(folder, read.states)
        tokens = read.fingerprint.tokens_T.numpy()
        now = take_fingerprint(self._policy, tokens)
        try:
            moved = check_same(read.fingerprint, now, manifest.facts.get("device") == describe_device())
        except SelfCheckError as error:
            problem = str(error)
        if (problem := self._first_of(problem)) is not None:
            return problem
        _LOG.info("%s answers as it was saved: logits moved by %.1e.", folder.name, moved)
        restore_rng(read.rng)
        loaded.append(read.state)
        return None

    def _first_of(self, problem: str | None) -> str | None:
        """Return the problem of the first rank that has one. Collective."""
        found: list[str | None] = self._mesh.gather(problem)
        return next((text for text in found if text), None)

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

    def _check_resumable(self, folder: Path, manifest: Manifest) -> None:
        ranks = self._mesh.num_ranks
        checks = (
            ("the number of ranks", manifest.world_size, ranks, "Start as many ranks as saved it"),
            ("`zero.stage`", manifest.zero_stage, self._engine.stage, "Resume with the saved stage"),
            ("the data", manifest.data_digest, self._identity.data_digest, "Prepare the same data"),
            (
                "the base model",
                manifest.facts.get("base"),
                self._identity.base_digest,
                "Give the same base weights",
            ),
            ("the configuration", manifest.config_digest, self._identity.config_digest, "Use the same one"),
        )
        for what, saved, now, fix in checks:
            if saved != now:
                raise CheckpointError(
                    f"{folder} must be resumed with {what} that saved it ({saved}), but has {now} instead. "
                    f"{fix}, or give another run_dir."
                )


@dataclass(frozen=True, slots=True)
class _Read:
    """What a rank read of a checkpoint."""

    states: dict[str, Any]
    rng: Any
    state: TrainState
    fingerprint: Fingerprint


def _read(folder: Path, rank: int) -> _Read:
    """Read a rank's files of a checkpoint that verified."""
    return _Read(
        states=read_states(folder, rank),
        rng=json.loads((folder / rng_file(rank)).read_text(encoding="utf-8")),
        state=read_state(folder / STATE),
        fingerprint=read_fingerprint(folder / FINGERPRINT),
    )


def make_room(
    run_dir: Path, options: CheckpointConfig, goes_on: bool, num_trainable: int, dtype: str
) -> None:
    """Remove what a killed save left, and raise when the disk has no room for the checkpoints to come; one rank."""
    remove_staging(run_dir)
    num_kept = options.keep_last + int(options.keep_best)
    num_new = num_kept + 1  # what is given up makes no room
    if goes_on:
        num_new = num_to_come(run_dir, num_kept, options.keep_every_steps)
    check_space(run_dir, num_trainable, dtype, num_new)
