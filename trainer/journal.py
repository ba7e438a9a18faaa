"""Tell what a run does: console, metrics.jsonl, wandb, ledger. Rank 0 writes; other ranks only count.

Implements the loop's Reporter.
"""

from __future__ import annotations

import logging
import math
from typing import Protocol

from trainer.checkpoint.state import TrainState
from trainer.metrics.jsonl import Ledger
from trainer.metrics.memory import device_memory_gib
from trainer.metrics.meter import Meter
from trainer.metrics.sink import Sinks, Value
from trainer.step import StepResult

_LOG = logging.getLogger(__name__)


class Times(Protocol):
    """Seconds of a step."""

    @property
    def step_s(self) -> float:
        """Wall time of the step."""

    @property
    def data_wait_s(self) -> float:
        """The part spent waiting for data."""


class Journal:
    """Turns what happens into records."""

    def __init__(
        self,
        sinks: Sinks,
        ledger: Ledger | None,
        meter: Meter,
        num_steps: int,
        tokens_per_step: int,
    ) -> None:
        """Take the sinks of rank 0, or empty ones elsewhere."""
        self._sinks = sinks
        self._ledger = ledger
        self._meter = meter
        self._num_steps = num_steps
        self._tokens_per_step = tokens_per_step

    def step(self, state: TrainState, result: StepResult, lr: float, times: Times, is_logged: bool) -> None:
        """Add a step to the window; write the window when it is logged."""
        self._meter.add(
            times.step_s,
            self._tokens_per_step,
            sum(result.num_targets.values()),
            result.sum_len_sq,
            times.data_wait_s,
        )
        for source, loss_sum in result.loss_sums.items():
            self._meter.add_loss(source, loss_sum, result.num_targets[source])
        if not is_logged:
            return
        record: dict[str, Value] = dict(
            self._meter.flush(self._num_steps - state.step, device_memory_gib()[0])
        )
        record |= {
            "lr": lr,
            "grad_norm": result.grad_norm,
            "tokens_seen": state.tokens_seen,
            "skipped_steps": state.skipped_steps,
        }
        for source, count in state.targets_by_source.items():
            record[f"targets_seen/{source}"] = count
        self._sinks.write(state.step, record)

    def evaluation(self, state: TrainState, losses: dict[str, float], seconds: float) -> None:
        """Write held-out losses."""
        if not losses:
            return
        record: dict[str, Value] = {f"eval/{name}": loss for name, loss in losses.items()}
        record["eval_mean"] = sum(losses.values()) / len(losses)
        record["eval_time_s"] = seconds
        if state.best_step is not None:
            record["best_step"] = state.best_step
        self._sinks.write(state.step, record)

    def skipped(self, state: TrainState, result: StepResult) -> None:
        """Say that a step was not applied or not finite; it never passes silently."""
        why = "loss" if not math.isfinite(result.loss) else "gradients"
        _LOG.warning(
            "Step %d: non-finite %s (loss %s, gradient norm %s); %s. Skipped so far: %d, in a row: %d.",
            state.step,
            why,
            result.loss,
            result.grad_norm,
            "applied all the same" if result.is_applied else "not applied",
            state.skipped_steps,
            state.bad_steps_in_a_row,
        )
        self._event("skipped", state, loss=str(result.loss), grad_norm=str(result.grad_norm))

    def saved(self, state: TrainState, seconds: float) -> None:
        """Record a checkpoint and everything consumed up to it."""
        _LOG.info("Step %d: checkpoint committed in %.1f s.", state.step, seconds)
        self._event(
            "saved",
            state,
            seconds=round(seconds, 3),
            tokens_seen=state.tokens_seen,
            targets_by_source=dict(state.targets_by_source),
            data_digest=state.data_digest,
        )

    def started(self, state: TrainState, **facts: object) -> None:
        """Record that an attempt begins."""
        self._event("started", state, attempt=state.attempts, **facts)

    def close(self, state: TrainState, status: str) -> None:
        """Record the end and close every sink."""
        self._event("stopped", state, reason=status, data_digest=state.data_digest)
        self._sinks.close(status)
        if self._ledger is not None:
            self._ledger.close()

    def _event(self, event: str, state: TrainState, **fields: object) -> None:
        if self._ledger is not None:
            self._ledger.write(event, state.step, **fields)
