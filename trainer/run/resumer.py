"""A checkpoint of a run taken over when it goes on, by any ranks and at any stage.

Collective everywhere: every rank, same order.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.checkpoint.layout import FINGERPRINT, STATE, find_checkpoints, rng_file, step_of
from trainer.checkpoint.lineage import abandon, choose
from trainer.checkpoint.manifest import Lineage, Manifest
from trainer.checkpoint.shards import open_shards
from trainer.checkpoint.state import TrainState, read_state
from trainer.checkpoint.verify import inspect, patiently
from trainer.config.many import many
from trainer.dist.seed import check_rng, restore_rng, seed_everything
from trainer.engine.policy import Policy
from trainer.errors import CheckpointError, DamagedError, SelfCheckError
from trainer.evaluate.proofs.fingerprint import (
    Fingerprint,
    check_same,
    read_fingerprint,
    take_fingerprint,
)
from trainer.metrics.device import describe_device
from trainer.run.lost import lost_step, refuse_lost

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """What a checkpoint must have been saved with to be gone on from."""

    config_digest: str
    data_digest: str
    base_digest: str | None
    """Names the frozen weights where checkpoints leave them out; else None."""


class Resumer:
    """Finds where a run stands."""

    def __init__(self, policy: Policy, run_dir: Path, identity: RunIdentity, seed: int) -> None:
        """Take what is loaded into, from where, and what it must have been saved with.

        Args:
            seed: Of the run, for random numbers where those of a checkpoint are of other ranks.
        """
        self._policy = policy
        self._mesh = policy.mesh
        self._engine = policy.engine
        self._run_dir = run_dir
        self._identity = identity
        self._seed = seed

    def resume(self, goes_on: bool, new: Lineage) -> tuple[TrainState, Lineage]:
        """Load the newest checkpoint that can be used, prove it, and return where the run stands and its line.

        Args:
            goes_on: False begins at step 0, with what is there set aside.
            new: The line of a run that begins.

        Raises:
            CheckpointError: Saved with another configuration or data; or there are checkpoints and none can be used, or
                there were: a run does not start over by itself.
        """
        if not goes_on:
            left = self._mesh.from_first(lambda: abandon(self._run_dir, lost_step(self._run_dir) is not None))
            if left is not None and self._mesh.is_first:
                _LOG.warning("checkpoint.resume=false: begins at step 0. What was here is kept in %s.", left)
            return TrainState(), new
        loaded: list[TrainState] = []

        def load(folder: Path, manifest: Manifest) -> str | None:
            self._check_resumable(folder, manifest)
            return self._load(folder, manifest, loaded)

        found = choose(self._run_dir, self._mesh, load, _LOG.warning)
        if found is None:
            self._mesh.from_first(lambda: refuse_lost(self._run_dir))
            return TrainState(), new
        folder, manifest = found
        state = loaded[-1]
        state.attempts += 1
        _LOG.info("Resumed %s: step %d, %d tokens seen.", folder.name, state.step, state.tokens_seen)
        return state, Lineage(manifest.lineage.run, state.attempts, folder.name)

    def go_back(self, most_step: int) -> tuple[TrainState, str] | None:
        """Load the newest checkpoint of at most a step, or the oldest there is; None where none can be used.

        Collective: every rank. Returns its state and its name.
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
                return loaded[-1], folder.name
            _LOG.warning("Checkpoint %s cannot be gone back to: %s.", folder.name, problem)
        return None

    def _load(self, folder: Path, manifest: Manifest, loaded: list[TrainState]) -> str | None:
        """Take a checkpoint over and add its state to `loaded`, or return why it cannot be used. Collective.

        Every file is read before the first collective, so that all ranks agree on what one cannot read.
        """
        read: _Read | None = None
        problem: str | None = None
        try:
            read = patiently(lambda: self._read(folder, manifest))
        except DamagedError as error:
            problem = str(error)
        except CheckpointError:
            raise
        except Exception as error:
            problem = f"rank {self._mesh.rank} cannot read it: {type(error).__name__}: {error}"
        if (problem := self._first_of(problem)) is not None or read is None:
            return problem
        if not read.fingerprint.is_finite or read.state.bad_steps_in_a_row:
            return "it was saved while numbers were not finite"
        self._engine.settle()
        is_alike = self._is_alike(manifest)
        tokens = read.fingerprint.tokens_T.numpy()
        now = take_fingerprint(self._policy, tokens)
        try:
            is_exact = is_alike and manifest.facts.get("device") == describe_device()
            moved = check_same(read.fingerprint, now, is_exact)
        except SelfCheckError as error:
            problem = str(error)
        if (problem := self._first_of(problem)) is not None:
            return problem
        _LOG.info("%s answers as it was saved: logits moved by %.1e.", folder.name, moved)
        if is_alike:
            restore_rng(read.rng)
        else:
            seed_everything(self._seed + read.state.step, self._mesh.rank)
            _LOG.info(
                "It was saved by %s at ZeRO-%d, and goes on with %d at ZeRO-%d: the same tokens, numbers within "
                "rounding; dropout draws anew.",
                many(manifest.world_size, "rank"),
                manifest.zero_stage,
                self._mesh.num_ranks,
                self._engine.stage,
            )
        loaded.append(read.state)
        return None

    def _read(self, folder: Path, manifest: Manifest) -> _Read:
        """Read this rank's part of a checkpoint that verified, weights and optimizer into the engine; no collective."""
        self._engine.fill(open_shards(folder))
        rng = None
        if self._is_alike(manifest):
            rng = json.loads((folder / rng_file(self._mesh.rank)).read_text(encoding="utf-8"))
            check_rng(rng)
        return _Read(rng, read_state(folder / STATE, manifest.step), read_fingerprint(folder / FINGERPRINT))

    def _is_alike(self, manifest: Manifest) -> bool:
        """Tell whether as many ranks at the same stage saved a checkpoint: then it goes on bit for bit."""
        saved = (manifest.world_size, manifest.zero_stage)
        return saved == (self._mesh.num_ranks, self._engine.stage)

    def _first_of(self, problem: str | None) -> str | None:
        """Return the problem of the first rank that has one. Collective."""
        found: list[str | None] = self._mesh.gather(problem)
        return next((text for text in found if text), None)

    def _check_resumable(self, folder: Path, manifest: Manifest) -> None:
        checks = (
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
    """What a rank read of a checkpoint beside its shards."""

    rng: Any
    """None: another number of ranks or another stage saved it."""
    state: TrainState
    fingerprint: Fingerprint
