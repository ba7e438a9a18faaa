"""Tell what a run does: console, metrics.jsonl, trackers, ledger. Rank 0 writes; other ranks only count."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Mapping, Sequence

from trainer.checkpoint.layout import next_abandoned
from trainer.checkpoint.state import TrainState
from trainer.config.many import many
from trainer.evaluate.answers import GivenAnswer
from trainer.metrics.delivery import Delivery, close_all
from trainer.metrics.device import device_memory_gib
from trainer.metrics.jsonl import JsonlSink, Ledger
from trainer.metrics.meter import Meter
from trainer.metrics.sink import Sinks, Value
from trainer.metrics.tracker import Conclusion, by_source
from trainer.mix.controller import Decision
from trainer.mix.mixing import Mixing
from trainer.mix.replay_choice import Choice
from trainer.rounds.rounds import MadeRound
from trainer.run.pace import SlowRank
from trainer.run.saver import Saved
from trainer.run.spikes import Spike
from trainer.run.step import StepResult
from trainer.run.step_times import StepTimes
from trainer.run.told_replay import logged_choices, told_choice, told_decision
from trainer.run.told_rounds import told_round

_LOG = logging.getLogger(__name__)
MOST_SAID = 3
"""Spikes that are applied and told of an attempt; the ledger has every one, and their number is said at the end."""


class Journal:
    """Turns what happens into records."""

    def __init__(
        self,
        sinks: Sinks,
        ledger: Ledger | None,
        meter: Meter,
        mixing: Mixing,
        trackers: Sequence[Delivery] = (),
        samples: JsonlSink | None = None,
        metrics: JsonlSink | None = None,
    ) -> None:
        """Take the sinks and trackers of rank 0, or empty ones elsewhere, and what the run draws from.

        Args:
            samples: Where answers go; None: the run has none.
            metrics: The one of the sinks that goes back with the run.
        """
        self._sinks = sinks
        self._ledger = ledger
        self._meter = meter
        self._mixing = mixing
        self._trackers = trackers
        self._status = "failed"
        self._samples = samples
        self._metrics = metrics
        self._num_spikes = self._num_still = self._num_rounds = 0

    def step(
        self,
        state: TrainState,
        result: StepResult,
        lr: float,
        times: StepTimes,
        is_logged: bool,
        spread: Mapping[str, float] | None = None,
    ) -> Mapping[str, float]:
        """Add a step to the window; write the window when it is logged, and return its means by name.

        Args:
            spread: How evenly tokens were spread over experts in the window, and work over ranks.
        """
        self._meter.add(
            times.step_s,
            result.num_tokens,
            result.num_targets,
            result.sum_len_sq,
            times.data_wait_s,
            result.num_padding,
        )
        self._meter.add_sums(result.sums)
        self._mind_still(state, result, lr)
        if not is_logged:
            return {}
        means = self._meter.flush(
            result.means,
            self._mixing.num_steps - state.step,
            device_memory_gib()[0],
            times.evaluations_left,
            times.rounds_left,
        )
        record: dict[str, Value] = {
            **means,
            "lr": lr,
            "grad_norm": result.grad_norm,
            "tokens_seen": state.tokens_seen,
            "skipped_steps": state.skipped_steps,
        }
        record |= spread or {}
        for source, count in state.targets_by_source.items():
            record[by_source("targets_seen", source)] = count
        if self._mixing.has_replay:
            record["replay_ratio"] = state.replay_ratio
            record["replay_share"] = self._mixing.share_reached(state)
        self._write(state.step, record)
        return means

    def warned(self, state: TrainState, why: str) -> None:
        """Record what the objective says is going wrong."""
        _LOG.warning("Step %d: %s", state.step, why)
        self._event("warned", state, why=why)

    def _mind_still(self, state: TrainState, result: StepResult, lr: float) -> None:
        """Say once that a gradient is exactly 0, and count such steps."""
        if result.grad_norm != 0 or not result.is_sound:
            return
        self._num_still += 1
        if self._num_still == 1:
            _LOG.warning(
                "Step %d: the gradient is exactly 0, so nothing is learnt from its tokens. If earlier ones were not, "
                "the weights have most likely been driven too far: lower optim.lr (it is %.3g here).",
                state.step,
                lr,
            )

    def evaluation(self, state: TrainState, measured: dict[str, float], seconds: float) -> None:
        """Write held-out losses and what else was measured with them, under the keys they have."""
        self._meter.add_evaluation(seconds)
        if not measured:
            return
        record: dict[str, Value] = {**measured, "eval_time_s": seconds}
        if state.best_step is not None:
            record["best_step"] = state.best_step
        self._write(state.step, record)

    def scores(self, state: TrainState, record: dict[str, Value]) -> None:
        """Write the scores of benchmark tasks and the time they took."""
        self._write(state.step, record)

    def answers(self, state: TrainState, answers: Sequence[GivenAnswer]) -> None:
        """Write what prompts were answered."""
        if self._samples is not None:
            for answer in answers:
                self._samples.write(state.step, dataclasses.asdict(answer))

    def put_off(self, state: TrainState, why: str, is_last: bool) -> None:
        """Record that tasks and answers were due and not done."""
        until = "and there is no later step" if is_last else "until there is time"
        _LOG.warning("Step %d: tasks and answers are put off, %s: %s.", state.step, until, why)
        self._event("put_off", state, why=why)

    def skipped(self, state: TrainState, result: StepResult) -> None:
        """Say that a step was not applied or not finite; it never passes silently."""
        loss = result.loss
        why = ", ".join(result.unsound) or "gradients"
        _LOG.warning(
            "Step %d: non-finite %s (loss %s, gradient norm %s); %s. Skipped so far: %d, in a row: %d.",
            state.step,
            why,
            loss,
            result.grad_norm,
            "applied all the same" if result.is_applied else "not applied",
            state.skipped_steps,
            state.bad_steps_in_a_row,
        )
        self._event("skipped", state, loss=str(loss), grad_norm=str(result.grad_norm))

    def spiked(self, state: TrainState, spike: Spike, back_to: int | None) -> None:
        """Record a step far beyond what is usual, and what is done about it; `back_to` is the step gone back to."""
        done = "not applied, its data counts as consumed" if spike.is_refused else "applied"
        if back_to is not None:
            done = f"gone back to step {back_to}, from where its data is passed over"
        self._num_spikes += 1
        if spike.is_refused or back_to is not None or self._num_spikes <= MOST_SAID:
            more = (
                ". More of them are only counted, and are in ledger.jsonl"
                if self._num_spikes == MOST_SAID
                else ""
            )
            _LOG.warning(
                "Step %d: a spike: %s is %.4g, and %.4g is usual at most: %s%s.",
                state.step,
                spike.number,
                spike.value,
                spike.bound,
                done,
                more,
            )
        self._event("spike", state, **dataclasses.asdict(spike), back_to=back_to)

    def passed_over(self, state: TrainState) -> None:
        """Record a step whose data is passed over."""
        _LOG.warning(
            "Step %d: its data is passed over, as a spike came of it; it counts as consumed.", state.step + 1
        )
        self._event("passed_over", state, batch=state.step)

    def went_back(self, state: TrainState) -> None:
        """Record that steps come again, and move what was written of them aside."""
        self._event("went_back", state, rewinds=state.rewinds, passed_over=state.passed_over)
        for file in (self._metrics, self._samples):
            if file is not None:
                aside = next_abandoned(file.folder)
                num_moved = file.go_back(state.step, aside)
                _LOG.warning("%s after step %d are now in %s.", many(num_moved, "line"), state.step, aside)

    def paced(self, state: TrainState, change: SlowRank) -> None:
        """Record that a rank has become slow, or is so no longer."""
        _LOG.warning(
            "Step %d: rank %d on %s %s: it computes %.3g s in a step, %.2f times the median of all ranks.",
            state.step,
            change.rank,
            change.node,
            "is a straggler" if change.is_slow else "is no straggler any more",
            change.step_s,
            change.ratio,
        )
        self._event("straggler" if change.is_slow else "no_straggler", state, **dataclasses.asdict(change))

    def steered(self, state: TrainState, decision: Decision) -> None:
        """Record what the replay controller saw and chose."""
        _LOG.info("Step %d: %s", state.step, told_decision(decision))
        self._event("steered", state, **dataclasses.asdict(decision))

    def chose(self, state: TrainState, choices: Sequence[Choice], seconds: float) -> None:
        """Record which replay packs come next; the time is none of steps."""
        self._meter.add_evaluation(seconds)
        for choice in choices:
            _LOG.info("Step %d: %s", state.step, told_choice(choice))
            plain = choice.to_plain()
            assert plain.pop("step") == state.step, "it is told when it is made"
            self._event("chose", state, **plain)
        self._write(state.step, {**logged_choices(choices, seconds)})

    def sampled(self, state: TrainState, made: MadeRound, seconds: float) -> None:
        """Record a round of answers, the first of an attempt in words too; the time is none of steps."""
        self._meter.add_round(seconds, made.num_answers, made.num_tokens, made.num_ended)
        self._num_rounds += 1
        if self._num_rounds == 1:
            _LOG.info("Step %d: %s", state.step, told_round(made, seconds))
        self._event("sampled", state, **made.to_plain(), seconds=round(seconds, 3))

    def saved(self, saved: Saved) -> None:
        """Record a checkpoint and everything consumed up to it."""
        state = saved.state
        _LOG.info(
            "Step %d: checkpoint committed in %.1f s; steps waited %.1f s.",
            state.step,
            saved.seconds,
            saved.stall_s,
        )
        self._event(
            "saved",
            state,
            seconds=round(saved.seconds, 3),
            stall_s=round(saved.stall_s, 3),
            tokens_seen=state.tokens_seen,
            targets_by_source=dict(state.targets_by_source),
            tokens_by_source=dict(state.tokens_by_source),
            data_digest=state.data_digest,
            replay_ratio=state.replay_ratio,
            epochs_by_source=self._mixing.epochs_by_source(state),
            best={"step": state.best_step, "metric": state.best_metric, "value": state.best_value},
        )

    def not_saved(self, state: TrainState, why: str) -> None:
        """Record that no checkpoint was committed though one was due."""
        _LOG.warning("Step %d: nothing is saved: %s. Earlier checkpoints stay.", state.step, why.rstrip("."))
        self._event("not_saved", state, why=why)

    def started(self, state: TrainState, **facts: object) -> None:
        """Record that an attempt begins."""
        self._event("started", state, attempt=state.attempts, **facts)

    def close(self, state: TrainState, status: str) -> None:
        """Record the end and close every file but the ledger; trackers may still be told what the run came to.

        Raises:
            OSError: The disk does not take all that was recorded.
        """
        self._status = status
        if self._num_spikes > MOST_SAID:
            _LOG.warning("Spikes: %d in this attempt; ledger.jsonl has them.", self._num_spikes)
        if self._num_still > 1:
            _LOG.warning("%d steps of this attempt had a gradient of exactly 0.", self._num_still)
        self._event("stopped", state, reason=status, data_digest=state.data_digest)
        self._sinks.close(status)
        if self._samples is not None:
            self._samples.close(status)
        if self._ledger is not None:
            self._ledger.sync()

    def bring_to_disk(self) -> None:
        """Bring every line to the disk: a checkpoint stands on the records of the steps before it.

        Raises:
            OSError: The disk does not take all of them; they wait, and are tried again.
        """
        for file in (self._metrics, self._samples, self._ledger):
            if file is not None:
                file.sync()

    def conclude(self, found: Conclusion | None) -> None:
        """Tell trackers what the run came to."""
        if found is not None:
            for tracker in self._trackers:
                tracker.conclude(found)

    def concluded(self, state: TrainState, asked: str) -> None:
        """Record that nothing is left to be done of what was asked for: the comparison, the report, and trackers.

        Args:
            asked: Digest of that.
        Raises:
            OSError: The disk does not take it.
        """
        self._event("concluded", state, asked=asked)
        if self._ledger is not None:
            self._ledger.sync()

    def release(self) -> None:
        """Close the ledger; a second call does nothing.

        What a full disk did not take has been said by then.
        """
        if self._ledger is not None:
            with contextlib.suppress(OSError):
                self._ledger.close()

    def leave(self) -> None:
        """Close the trackers, which may take a while; a second call does nothing."""
        close_all(self._trackers, self._status)

    def _write(self, step: int, record: dict[str, Value]) -> None:
        # metrics.jsonl first: it is where trackers that fell behind are told from.
        self._sinks.write(step, record)
        for tracker in self._trackers:
            tracker.write(step, record)

    def _event(self, event: str, state: TrainState, **fields: object) -> None:
        if self._ledger is not None:
            self._ledger.write(event, state.step, **fields)
