"""What training and evaluating have in common: ranks, data, model and engine, built in this order."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from trainer.checkpoint.layout import find_checkpoints
from trainer.config.begun import may_be_uneven
from trainer.config.record import refuse_other_inputs
from trainer.config.schema import RunConfig
from trainer.config.snapshot import fitted_values, with_fitted, with_packing_mode, with_share_prompts
from trainer.data.store.overlap import check_disjoint
from trainer.data.store.prepared import find_all, in_rows, open_each
from trainer.data.store.store import Store
from trainer.dist.env import rank_env
from trainer.dist.mesh import Mesh, alone, close_mesh, keep_stacks_in, open_mesh
from trainer.dist.progress import PROGRESS, Phase
from trainer.dist.seed import choose_kernels, seed_everything
from trainer.engine.batch import BatchShape, batch_shape
from trainer.engine.policy import Policy
from trainer.evaluate.held_out import HeldOut
from trainer.mix.mixing import Mixing
from trainer.model.carry import carried_by
from trainer.model.digest import base_digest
from trainer.model.load import (
    LoadedModel,
)
from trainer.model.resolve import resolve_model
from trainer.model.tokenizer import Tokenizer, configured_tokenizer
from trainer.model.tune.adapters import Tuned
from trainer.model.tune.started import StartAdapter
from trainer.run.building import build_model
from trainer.run.heed import before_training, heeding
from trainer.run.identity import known_base
from trainer.run.packing import with_packing
from trainer.run.start_adapter import named_with_start, open_start
from trainer.run.uneven import check_uneven
from trainer.run.watching import watching_of
from trainer.runtime.log import ATTEMPT, adopt_library_loggers, attempt_dir, setup_logging
from trainer.runtime.signals import StopFlag

_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class Session:
    """What training and evaluating have in common: ranks, data, model and engine."""

    config: RunConfig
    run_dir: Path
    stores: dict[str, Store]
    tokenizer: Tokenizer
    loaded: LoadedModel
    tuned: Tuned
    policy: Policy
    shape: BatchShape
    stop_flag: StopFlag | None = None
    """Heeded in what takes long before training; None: signals do what they did before."""
    start: StartAdapter | None = None
    """What the adapter began as; None for a fresh one, and without one."""
    _base: str | None = None

    @property
    def mesh(self) -> Mesh:
        """Return the ranks."""
        return self.policy.mesh

    @property
    def pad_id(self) -> int:
        """Return the token that fills packs; its positions carry no loss."""
        return self.tokenizer.pad_id or 0

    @property
    def shares_prompts(self) -> bool:
        """Tell whether any pack holds a prompt once for several answers."""
        return any(
            split.num_shared for store in self.stores.values() for split in (store.train, store.validation)
        )

    @property
    def goes_by_base(self) -> bool:
        """Tell whether what goes on needs the very base it began with: for what is frozen, or to be pulled to."""
        return self.tuned.is_partial or self.config.optim.base_decay > 0

    def heed(self) -> None:
        """Raise GivenUp on all ranks where one is asked to stop. Collective: every rank."""
        heeding(self.mesh, self.stop_flag)()

    def expect(self, when: str) -> None:
        """Prepare the answer to a signal that comes before the first step: when the run ends then."""
        if self.stop_flag is not None:
            self.stop_flag.when = before_training(when)

    def begun_digest(self) -> str:
        """Return what names the model before the first step: the base, with an adapter that it goes on with.

        Collective: every rank.
        """
        return named_with_start(self.base_digest(), self.start)

    def base_digest(self) -> str:
        """Return what names the weights that were loaded, without an adapter. Collective: every rank.

        Raises:
            GivenUp: A rank was asked to stop meanwhile; where it is the first, which reads them, that ends at once.
        """
        if self._base is None:
            model, source = self.config.model, self.loaded.source
            quantise, cache_dir = self.config.tune.quantise, self.config.data.cache_dir
            look = heeding(alone(self.mesh.device), self.stop_flag)
            digest = self.mesh.from_first(lambda: base_digest(model, quantise, source, cache_dir, look))
            self._base = str(digest)
            self.heed()
        return self._base

    def mixing(self) -> Mixing:
        """Lay out what the run draws from."""
        config = self.config
        packs_per_step = self.shape.packs_per_step
        return Mixing(config.data, config.replay, config.train, config.seed, self.stores, packs_per_step)

    def held_out(self) -> HeldOut:
        """Lay out the held-out packs."""
        return HeldOut(
            names=list(self.stores),
            stores=[store.validation for store in self.stores.values()],
            max_packs=self.config.data.max_validation_packs,
            micro_batch_size=self.config.evaluate.micro_batch_size,
            pad_id=self.pad_id,
        )


def open_session(
    config: RunConfig,
    stack: ExitStack,
    goes_on: bool = True,
    stop_flag: StopFlag | None = None,
    logs_of: str = ATTEMPT,
) -> Session:
    """Join the ranks and build data, model and engine, in this order. The configuration is checked already.

    Args:
        goes_on: What the run directory holds is gone on from or measured, so that it must be of these inputs.
        logs_of: What the ranks log, which names the folder of their logs.
        stop_flag: Heeded while the model is loaded; None: signals do what they did before.
    Raises:
        DataError: They are others.
        GivenUp: A rank was asked to stop meanwhile; all ranks raise it.
    """
    env = rank_env(os.environ)
    run_dir = Path(config.run_dir)
    setup_logging(env.rank, env.world_size, None)
    watching = watching_of(config.cluster.watch, env.is_first)
    mesh = open_mesh(env, config.cluster.comm_timeout_s, watching, config.train.sequence_parallel)
    stack.push(close_mesh)
    PROGRESS.begin(Phase.load)
    # Nodes may differ in their GPUs or processors: what the first one made of them is what was frozen.
    config = with_fitted(config, *mesh.from_first(lambda: fitted_values(config)))
    packed = mesh.from_first(lambda: with_packing(config, says=False).data)
    config = with_share_prompts(with_packing_mode(config, packed.packing), packed.share_prompts)
    logs = mesh.from_first(lambda: attempt_dir(run_dir, logs_of))
    setup_logging(env.rank, env.world_size, logs)
    keep_stacks_in(logs)
    seed_everything(config.seed, mesh.rank)
    choose_kernels(config.deterministic)
    source = resolve_model(config.model, Path(config.data.cache_dir))
    tokenizer = configured_tokenizer(config.model, source)
    # Where they are is asked once: ranks of other nodes need not see the files that stores were made of.
    places = mesh.from_first(lambda: find_all(config.data, tokenizer))
    stores = open_each(config.data, places)
    if goes_on:
        mesh.from_first(lambda: _refuse_other_inputs(config, stores, tokenizer.digest, source))
    mesh.from_first(lambda: check_disjoint(stores))
    shape = _batch_shape(config, mesh)
    heed = heeding(mesh, stop_flag)
    heed()
    start = open_start(config, source, goes_on, mesh)
    loaded, tuned, engine = build_model(config, source, stores, mesh, shape, tokenizer.new, heed, start)
    carries = carried_by(loaded.model.config) is not None
    policy = Policy(engine, mesh, loaded.attention.is_flash, in_rows(config.data), carries)
    adopt_library_loggers()
    check_uneven(shape, policy)
    return Session(config, run_dir, stores, tokenizer, loaded, tuned, policy, shape, stop_flag, start)


def _batch_shape(config: RunConfig, mesh: Mesh) -> BatchShape:
    """Spread the packs of a step over ranks; unevenly only in a run that may be moved. Collective: every rank."""
    train = config.train
    return batch_shape(
        train.global_batch_tokens,
        config.data.seq_len,
        train.micro_batch_size,
        mesh.num_ranks,
        may_be_uneven=mesh.from_first(lambda: may_be_uneven(config, mesh.num_ranks)),
        sequence_parallel=mesh.sequence.size,
    )


def _refuse_other_inputs(config: RunConfig, stores: dict[str, Store], tokenizer: str, source: str) -> None:
    """Raise when a run that goes on, or is evaluated, would read other data or another base than it began with."""
    run_dir = Path(config.run_dir)
    if find_checkpoints(run_dir):
        described = {name: store.described for name, store in stores.items()}
        refuse_other_inputs(run_dir, described, tokenizer, known_base(config, source))
