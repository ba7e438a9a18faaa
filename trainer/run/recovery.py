"""The recovery probe: a few steps on replay alone after training, to tell covered knowledge from lost knowledge.

What comes back at once was covered, not erased. Source: Zheng et al. 2025 (arXiv:2501.13453). The weights are
thrown away afterwards: nothing is saved after this.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from trainer.checkpoint.state import TrainState
from trainer.config.schema import RunConfig
from trainer.data.store.store import Store
from trainer.data.types import Unit
from trainer.evaluate.held_out import HeldOut, held_out_pieces
from trainer.evaluate.record import Recovery
from trainer.mix.loader import TrainLoader
from trainer.mix.mixing import Mixing
from trainer.mix.plan import DataPlan
from trainer.objective.causal_lm.cross_entropy import CausalLMObjective
from trainer.run.heed import GivenUp
from trainer.run.parts import RunParts
from trainer.run.step import train_step

LR_FRAC = 0.1
"""Learning rate of the probe as a share of the run's peak."""


def probe_recovery(
    parts: RunParts,
    config: RunConfig,
    stores: Mapping[str, Store],
    held_out: HeldOut,
    mixing: Mixing,
    state: TrainState,
) -> Recovery | None:
    """Train on replay alone and return how far the set that rose most came back. Collective; changes the weights.

    None when it is off, without replay of documents, or when no general set rose.
    """
    if not config.evaluate.recovery_steps:
        return None
    rises = {
        name: state.last_losses[name] - state.base_losses[name]
        for name in mixing.watch
        if name in state.last_losses and name in state.base_losses
    }
    name = max(rises, key=lambda key: rises[key], default=None)
    if name is None or not mixing.has_replay or not rises[name] > 0:
        return None
    units = [store.train.unit for store in stores.values()]
    pools = [
        dataclasses.replace(pool, is_replay=False)
        for pool in mixing.plan.pools
        if pool.is_replay and all(units[source] is Unit.document for source in pool.sources)
    ]
    if not pools:  # of preferences it would learn rejected answers
        return None
    plan = DataPlan(pools, mixing.plan.packs_per_step, config.data.seq_len, lambda step: 0.0, config.seed + 1)
    loader = TrainLoader(
        parts.loader.names,
        [store.train for store in stores.values()],
        plan,
        parts.policy.mesh.data,
        config.train.micro_batch_size,
        held_out.pad_id,
    )
    objective = CausalLMObjective(parts.loader.names)
    parts.policy.engine.stop_decay_to_start()  # what the pull brings back, replay did not
    try:
        for step in range(config.evaluate.recovery_steps):
            parts.policy.engine.set_lr(LR_FRAC * config.optim.lr)
            result = train_step(parts.policy, objective, loader.take(step), lambda: parts.stop_flag.requested)
            if result.stop_votes:
                raise GivenUp
    finally:
        loader.close()
    after = held_out_pieces(parts.policy, held_out)
    return Recovery(
        set=name,
        steps=config.evaluate.recovery_steps,
        base_nats=state.base_losses[name],
        tuned_nats=state.last_losses[name],
        recovered_nats=after[name].mean,
    )
