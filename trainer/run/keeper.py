"""Evaluate, save and resume: the slow work that the loop names. Implements the loop's Work.

Collective everywhere: every rank, same order.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.checkpoint.commit import Written, commit, remove_staging
from trainer.checkpoint.layout import FINGERPRINT, STATE, rng_file
from trainer.checkpoint.lineage import abandon, choose
from trainer.checkpoint.manifest import Lineage, Manifest
from trainer.checkpoint.prune import Retention, prune
from trainer.checkpoint.space import check_space, num_to_come
from trainer.checkpoint.state import TrainState, read_state, write_state
from trainer.checkpoint.verify import patiently
from trainer.config.schema import RunConfig
from trainer.config.snapshot import config_digest
from trainer.config.tune import Init, TuneMethod
from trainer.data.store.store import Store
from trainer.data.types import TokenizerLike
from trainer.dist.group import Group
from trainer.dist.seed import capture_rng, restore_rng
from trainer.engine.engine import Engine
from trainer.engine.writer import read_states, seal, write_states
from trainer.errors import CheckpointError, DataError, SelfCheckError
from trainer.evaluate.forgetting import Forgetting
from trainer.evaluate.held_out import HeldOut, PieceLosses, held_out_pieces
from trainer.evaluate.proofs.fingerprint import (
    Fingerprint,
    check_same,
    probe_tokens,
    read_fingerprint,
    take_fingerprint,
    write_fingerprint,
)
from trainer.evaluate.proofs.frozen import FrozenCheck, check_heard, check_silent
from trainer.evaluate.record import FILE_NAME, read_forgetting
from trainer.evaluate.tasks.scores import TaskScores
from trainer.metrics.device import describe_device
from trainer.mix.controller import Decision
from trainer.mix.mixing import Mixing
from trainer.model.tune.prompt import virtual_off
from trainer.optim.schedule import lr_factor
from trainer.report.build import build_report
from trainer.report.verdict import verdict
from trainer.runtime.job import is_requeued

_LOG = logging.getLogger(__name__)


class Keeper:
    """Keeps a run safe and honest: held-out losses, checkpoints, resume."""

    def __init__(
        self,
        run_dir: Path,
        engine: Engine,
        group: Group,
        flash: bool,
        config: RunConfig,
        mixing: Mixing,
    ) -> None:
        """Take the engine, where its checkpoints go, and what the run draws from."""
        self._run_dir = run_dir
        self._engine = engine
        self._group = group
        self._flash = flash
        self._checkpoint = config.checkpoint
        # A job that its scheduler starts again goes on, also when its first start was told to begin anew.
        self._goes_on = config.checkpoint.resume or is_requeued(os.environ)
        self._optim_lr = config.optim.lr
        self._schedule = config.schedule
        self._zero_dtype = config.zero.dtype
        self._config_digest = config_digest(config)
        self._mixing = mixing
        self._tune = config.tune
        self._frozen: FrozenCheck | None = None

    def prepare(
        self,
        held_out: HeldOut,
        stores: dict[str, Store],
        num_trainable: int,
        forgetting: Forgetting | None,
        task_scores: TaskScores | None = None,
        base_digest: str | None = None,
    ) -> None:
        """Take the data that evaluation and fingerprint read, find the base's evaluation, check the disk.

        Args:
            base_digest: Names the frozen weights where checkpoints leave them out; else None.
        """
        self._base_digest = base_digest
        self._held_out = held_out
        self._stores = stores
        self._forgetting = forgetting
        self._task_scores = task_scores
        self._newest: tuple[int, dict[str, PieceLosses]] = (-1, {})
        self._data_digest = data_digest(stores)
        self._probe = probe_tokens(_first_tokens(stores))
        if forgetting is not None:
            forgetting.open(self._data_digest)
        if self._tune.method is not TuneMethod.full:
            self._frozen = FrozenCheck(self._engine)
        if self._tune.method in (TuneMethod.lora, TuneMethod.ia3) and self._tune.init is not Init.pissa:
            check_silent(self._engine, self._probe, self._group, self._flash)
            _LOG.info("The adapter leaves the base's logits as they are.")
        if self._tune.is_virtual:
            moved = check_heard(self._engine, self._probe, self._group)
            _LOG.info("Every document of a pack sees the virtual tokens (%.1e of its logits' spread).", moved)
        if self._checkpoint.enabled:
            self._group.from_first(lambda: self._clear_the_way(num_trainable))

    def _clear_the_way(self, num_trainable: int) -> None:
        remove_staging(self._run_dir)
        num_kept = self._checkpoint.keep_last + int(self._checkpoint.keep_best)
        num_new = num_kept + 1  # what is given up makes no room
        if self._goes_on:
            num_new = num_to_come(self._run_dir, num_kept, self._checkpoint.keep_every_steps)
        check_space(self._run_dir, num_trainable, self._zero_dtype, num_new)

    def lr(self, step: int) -> float:
        """Return the learning rate of a zero-based step."""
        return self._optim_lr * lr_factor(step, self._mixing.num_steps, self._schedule)

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Return held-out losses by source; before the first step they are the base model's."""
        if state.step == 0 and self._forgetting is not None:
            with virtual_off(self._engine.module):
                if self._task_scores is not None:
                    self._task_scores.measure_base()
                return self._forgetting.measure_base()
        pieces = held_out_pieces(self._engine, self._held_out, self._group, self._flash)
        self._newest = (state.step, pieces)
        return {name: losses.mean for name, losses in pieces.items()}

    def finish(
        self, state: TrainState, tokenizer: TokenizerLike, recover: Callable[[], dict[str, Any] | None]
    ) -> bool:
        """Compare the tuned model with its base and tell whether it was; `recover` is the recovery probe."""
        if self._forgetting is None:
            return False
        if self._newest[0] != state.step:
            self.evaluate(state)
        pieces = self._newest[1]
        tasks = self._task_scores.measure_tuned() if self._task_scores is not None else []
        record = self._forgetting.compare(
            state, pieces, self._stores, tokenizer, self._mixing, tasks, recover
        )
        return record is not None

    def steer(self, state: TrainState) -> Decision | None:
        """Move the replay ratio in answer to held-out losses, if a controller is on."""
        return self._mixing.steer(state)

    def save(self, state: TrainState) -> str | None:
        """Commit a checkpoint and remove superseded ones; return why nothing was saved of an unsound model.

        Never one whose frozen parameters moved. All collectives come before the first file: a rank that cannot write
        says so to all, and nobody waits.
        """
        if self._frozen is not None:
            self._frozen.check(self._group)
        fingerprint = take_fingerprint(self._engine, self._probe, self._group, self._flash)
        is_finite = fingerprint.is_finite and self._engine.has_finite_weights()
        if not all(self._group.gather(is_finite)):
            return "the weights, or the model's answers, are not finite"
        states = self._engine.states()

        def write(staging: Path) -> list[Written]:
            files: list[Written] = list(write_states(states, staging))
            rng_path = staging / rng_file(self._group.rank)
            rng_path.write_text(json.dumps(capture_rng()), encoding="utf-8")
            files.append(seal(rng_path))
            if self._group.is_first:
                write_state(staging / STATE, state)
                write_fingerprint(staging / FINGERPRINT, fingerprint)
                files += [seal(staging / STATE), seal(staging / FINGERPRINT)]
            return files

        manifest = self._manifest(state)
        commit(self._run_dir, manifest, write, self._group)
        if self._group.is_first:
            best_step = state.best_step if self._checkpoint.keep_best else None
            options = self._checkpoint
            prune(self._run_dir, manifest, Retention(options.keep_last, options.keep_every_steps, best_step))
        return None

    def resume(self) -> TrainState:
        """Load the newest checkpoint that can be used, prove it, and return where the run stands.

        Raises:
            CheckpointError: Saved by another number of ranks, ZeRO stage, configuration or data; or there are
                checkpoints, and none can be used: a run does not start over by itself.
        """
        self._lineage = Lineage(self._group.broadcast(uuid.uuid4().hex[:12]), 1, None)
        if not self._checkpoint.enabled:
            return TrainState()
        if not self._goes_on:
            left = self._group.from_first(lambda: abandon(self._run_dir))
            if left is not None and self._group.is_first:
                _LOG.warning("checkpoint.resume=false: begins at step 0. What was here is kept in %s.", left)
            return TrainState()
        loaded: list[TrainState] = []

        def load(folder: Path, manifest: Manifest) -> str | None:
            self._check_resumable(folder, manifest)
            return self._load(folder, manifest, loaded)

        found = choose(self._run_dir, self._group, load, _LOG.warning)
        if found is None:
            return TrainState()
        folder, manifest = found
        state = loaded[-1]
        self._mixing.restore(state)
        state.attempts += 1
        self._lineage = Lineage(manifest.lineage.run, state.attempts, folder.name)
        _LOG.info("Resumed %s: step %d, %d tokens seen.", folder.name, state.step, state.tokens_seen)
        return state

    def _load(self, folder: Path, manifest: Manifest, loaded: list[TrainState]) -> str | None:
        """Take a checkpoint over and add its state to `loaded`, or return why it cannot be used. Collective.

        Every file is read before the first collective, so that all ranks agree on what one cannot read.
        """
        read: _Read | None = None
        problem: str | None = None
        try:
            read = patiently(lambda: _read(folder, self._group.rank))
        except CheckpointError:
            raise
        except Exception as error:
            problem = f"rank {self._group.rank} cannot read it: {type(error).__name__}: {error}"
        if (problem := self._first_of(problem)) is not None or read is None:
            return problem
        if not read.fingerprint.is_finite or read.state.bad_steps_in_a_row:
            return "it was saved while numbers were not finite"
        self._engine.load(folder, read.states)
        tokens = read.fingerprint.tokens_T.numpy()
        now = take_fingerprint(self._engine, tokens, self._group, self._flash)
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
        found: list[str | None] = self._group.gather(problem)
        return next((text for text in found if text), None)

    def _manifest(self, state: TrainState) -> Manifest:
        facts: dict[str, Any] = {"device": describe_device(), "base": self._base_digest}
        return Manifest(
            step=state.step,
            world_size=self._group.world_size,
            zero_stage=self._engine.stage,
            config_digest=self._config_digest,
            data_digest=self._data_digest,
            lineage=self._lineage,
            files={},
            facts=facts,
        )

    def _check_resumable(self, folder: Path, manifest: Manifest) -> None:
        ranks = self._group.world_size
        checks = (
            ("the number of ranks", manifest.world_size, ranks, "Start as many ranks as saved it"),
            ("`zero.stage`", manifest.zero_stage, self._engine.stage, "Resume with the saved stage"),
            ("the data", manifest.data_digest, self._data_digest, "Prepare the same data"),
            ("the base model", manifest.facts.get("base"), self._base_digest, "Give the same base weights"),
            ("the configuration", manifest.config_digest, self._config_digest, "Use the same one"),
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


def data_digest(stores: dict[str, Store]) -> str:
    """Return what names the data of a run."""
    return json.dumps({name: store.digest for name, store in stores.items()}, sort_keys=True)


def show_forgetting(run_dir: Path) -> None:
    """Build the report and say in a sentence what changed; rank 0."""
    report = build_report(run_dir)
    found = read_forgetting(run_dir / FILE_NAME)
    if found is not None:
        print(f"Held-out loss against the base: {verdict(found.sets)}")
        for one in found.tasks:
            print(f"Task {one.task}, {one.metric}: {_shown(one.base)} -> {_shown(one.tuned)}")
    print(f"Report: {report}", flush=True)


def _shown(score: float | None) -> str:
    return "not finite" if score is None else f"{score:.4f}"


def _first_tokens(stores: dict[str, Store]) -> np.ndarray:
    for store in stores.values():
        for split in (store.validation, store.train):
            if split.num_packs:
                return split.pack(0).tokens
    raise DataError("`data.sources` must hold at least one document, but hold none instead. Add data.")
