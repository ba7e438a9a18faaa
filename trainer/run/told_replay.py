"""Decisions about replay as lines, and as what is logged of them."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.config.many import many
from trainer.metrics.tracker import by_source
from trainer.mix.controller import Decision
from trainer.mix.replay_choice import Choice


def told_choice(choice: Choice) -> str:
    """Return in words what was chosen of a pool, and why."""
    num_chosen = min(choice.num_wanted, choice.num_candidates)
    return (
        f"of {many(choice.num_candidates, 'replay pack')} of {choice.pool} the {num_chosen} come next on which the "
        f"loss has risen most: by {choice.rise_chosen:+.4f} nats over the base, and "
        f"{choice.rise_candidates:+.4f} on all."
    )


def told_decision(decision: Decision) -> str:
    """Return in words what the controller saw and chose."""
    kl = ""
    if decision.kl_nats is not None:
        kl = f", the KL to the base {decision.kl_nats:.4f}; the {decision.decided_by} decides"
    return (
        f"general held-out loss is {decision.rise_nats:+.4f} nats from the base{kl}; "
        f"replay ratio {decision.previous:.4f} -> {decision.ratio:.4f}."
    )


def logged_choices(choices: Sequence[Choice], seconds: float) -> dict[str, float]:
    """Return what is logged of choices that were made together, by key."""
    record = {"choice_time_s": seconds}
    for choice in choices:
        record[by_source("replay_rise_chosen", choice.pool)] = choice.rise_chosen
        record[by_source("replay_rise", choice.pool)] = choice.rise_candidates
    return record
