"""How the ranks of a run watch each other, from its configuration."""

from __future__ import annotations

import os

from trainer.config.watch import WatchConfig
from trainer.dist.env import node_name
from trainer.dist.progress import Limits, Phase
from trainer.dist.warden import this_warden
from trainer.dist.watch import Watching
from trainer.engine.policy import Policy
from trainer.run.pace import Pace, Stragglers
from trainer.runtime.job import leave_exit_code


def watching_of(options: WatchConfig, is_first: bool) -> Watching | None:
    """Return how this rank watches and is watched; None where that is off."""
    if not options.enabled:
        return None
    of_phase = {
        Phase.load: options.load_s,
        Phase.prove: options.prove_s,
        Phase.evaluate: options.evaluate_s,
        Phase.generate: options.generate_s,
        Phase.save: options.save_s,
        Phase.finish: options.finish_s,
    }
    return Watching(
        Limits(options.step_s, options.step_factor, of_phase),
        options.beat_s,
        lambda code: leave_exit_code(os.environ, code, is_first),
        this_warden(),
    )


def pace_of(options: WatchConfig, policy: Policy) -> Pace | None:
    """Return what compares the pace of ranks; None where there is one, or none is looked for. Collective."""
    if policy.mesh.num_ranks == 1 or not options.straggler_ratio:
        return None
    nodes = policy.mesh.gather(node_name(os.environ))
    stragglers = Stragglers(options.straggler_ratio, nodes)
    by_layers = policy.engine.has_collective_forward
    return Pace(policy.mesh, policy.module, by_layers, options.straggler_steps, stragglers)
