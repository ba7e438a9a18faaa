"""Time: steps, when to log, evaluate, save and stop. Named calls, no hooks; readable on one screen.

To do something else during training, edit `train`.
"""

from __future__ import annotations

import dataclasses
import math
import time

from trainer.checkpoint.best import best_of
from trainer.checkpoint.state import TrainState
from trainer.config.many import many
from trainer.config.metric import CHAT_PROMPTS
from trainer.dist.progress import PROGRESS, Phase
from trainer.errors import CheckpointError
from trainer.metrics.tracker import by_source
from trainer.mix.loader import StepBatch, chain_digest
from trainer.model.expert_load import spread
from trainer.run.again import check_again
from trainer.run.ahead import look_ahead, take_round_again
from trainer.run.cadence import Cadence
from trainer.run.heed import GivenUp, before_training, in_step, measuring, saving
from trainer.run.parts import RunParts, StopReason
from trainer.run.spikes import LOSS, NORM, Spike
from trainer.run.step import Care, StepResult, pass_over, train_step
from trainer.run.step_times import StepTimes


def train(parts: RunParts, state: TrainState, cadence: Cadence) -> StopReason:
    """Run optimizer steps until the plan is met or all ranks agree to stop. Collective: every rank."""
    reason = run_steps(parts, state, cadence)
    settle(parts, state, is_last=True)
    return reason


def run_steps(parts: RunParts, state: TrainState, cadence: Cadence) -> StopReason:
    """Run them, and leave a save that goes on beside them. Collective: every rank."""
    ended = begin(parts, state, cadence)
    if ended is not None:
        return ended
    is_owed = False
    if parts.policy.expert_load is not None:
        parts.policy.expert_load.take()  # of proofs
    while state.step < cadence.num_steps:
        PROGRESS.begin(Phase.step, state.step + 1)
        started = time.perf_counter()
        batch = parts.loader.take(state.step)
        data_wait_s = time.perf_counter() - started
        lr = parts.lr(state.step)
        parts.policy.engine.set_lr(lr)
        if cadence.verify_due(state.step + 1):
            check_again(parts.policy, parts.objective, batch, state.step + 1)
        result = take_step(parts, state, cadence, batch)
        spike = look_for_spike(parts, state, result)
        advance(state, result, batch)
        if result.written_votes == parts.policy.mesh.num_ranks:
            settle(parts, state)
        if spike is not None and go_back(parts, state, spike):
            continue
        if not (result.is_sound or result.is_refused):
            parts.journal.skipped(state, result)
            if state.bad_steps_in_a_row > cadence.max_non_finite:
                return StopReason.non_finite
        times = times_of(parts, state, cadence, time.perf_counter() - started, data_wait_s)
        # A save that is still being written takes that long at least, and the last one waits for it.
        parts.stop_flag.has_taken(step_s=times.step_s, save_s=2 * parts.saver.writing_s)
        PROGRESS.step_took(times.step_s)
        tell(parts, state, result, lr, times, cadence.log_due(state.step))
        mind_memory(parts, state, result)
        preempted = result.stop_votes > 0 and state.step < cadence.num_steps
        measured, preempted = measure(parts, state, cadence, preempted)
        out_of_patience = is_out_of_patience(state, cadence)
        preempted = preempted or look_ahead(parts, state, out_of_patience)
        stopping = preempted or out_of_patience
        # A save that was due in the middle of non-finite steps is made up for after the first sound one.
        is_owed = is_owed or cadence.save_due(state.step, result.urgency) or (stopping and cadence.saves)
        is_owed = is_owed or parts.saver.is_due_again(state.step) or is_new_best(parts, state, measured)
        is_last = stopping or state.step == cadence.num_steps
        is_owed = is_owed and not save(parts, state, measured, is_last)
        if is_owed and not state.bad_steps_in_a_row:
            return StopReason.non_finite  # sound steps, and yet the model is not: it does not come back
        if preempted:
            return StopReason.preempted
        if out_of_patience:
            return StopReason.non_finite if is_owed else StopReason.early_stop
    return StopReason.non_finite if is_owed else StopReason.finished


def times_of(
    parts: RunParts, state: TrainState, cadence: Cadence, step_s: float, data_wait_s: float
) -> StepTimes:
    """Return the times of a step that was just taken."""
    rounds_left = 0 if parts.rounds is None else parts.rounds.left(state.step)
    return StepTimes(step_s, data_wait_s, cadence.evaluations_from(state.step), rounds_left)


def take_step(parts: RunParts, state: TrainState, cadence: Cadence, batch: StepBatch) -> StepResult:
    """Train on a batch, unless it is to be passed over. Collective: every rank."""
    num_micro = len(batch.micro_batches)
    bounds = parts.spikes.bounds(state) if parts.spikes is not None and parts.spikes.skips else {}
    most_loss, most_norm = (bounds.get(name, math.inf) for name in (LOSS, NORM))
    care = Care(
        at=in_step(parts.stop_flag, state.step + 1, cadence.num_steps, num_micro, cadence.saves),
        is_written=lambda: parts.saver.is_written,
        urgency=lambda: 0 if parts.clock is None else parts.clock.urgency,
        pace=parts.pace,
        most_loss=most_loss,
        most_norm=most_norm,
    )
    if state.step in state.passed_over:
        parts.journal.passed_over(state)
        return pass_over(parts.policy, parts.objective, batch, lambda: parts.stop_flag.requested, care)
    return train_step(parts.policy, parts.objective, batch, lambda: parts.stop_flag.requested, care)


def begin(parts: RunParts, state: TrainState, cadence: Cadence) -> StopReason | None:
    """Measure what is to be known before a step is taken; return why none is to be. Collective: every rank."""
    try:
        make_up(parts, state, cadence)
    except GivenUp:
        return StopReason.preempted  # nothing was trained that is not saved
    return StopReason.early_stop if state.step and is_out_of_patience(state, cadence) else None


def make_up(parts: RunParts, state: TrainState, cadence: Cadence) -> None:
    """Measure the base before the first step, and what a stop left undone. Collective: every rank.

    Raises:
        GivenUp: Ranks are to stop.
    """
    parts.stop_flag.when = before_training("and gives up what it measures before its first step")
    if state.last_evaluated_step < 0:
        evaluate(parts, state, cadence)
    elif cadence.evaluate_due(state.step) and state.step != state.last_evaluated_step:
        found = evaluate(parts, state, cadence)
        is_due = cadence.evaluate_before_save and cadence.save_due(state.step)
        if is_due or (is_out_of_patience(state, cadence) and cadence.saves):
            save(parts, state, found)
    if look_ahead(parts, state):
        raise GivenUp
    measured = parts.during.begin(state)
    if is_new_best(parts, state, measured):
        save(parts, state, measured)


def measure(
    parts: RunParts, state: TrainState, cadence: Cadence, preempted: bool
) -> tuple[dict[str, float], bool]:
    """Measure what is due after a step; return it, and whether ranks are to stop. Collective: every rank."""
    parts.stop_flag.when = measuring(state.step, cadence.saves)
    measured = parts.during.measure(state, preempted)
    if preempted or not cadence.evaluate_due(state.step):
        return measured, preempted
    try:
        return measured | evaluate(parts, state, cadence), False
    except GivenUp:
        return measured, True


def spread_of_experts(parts: RunParts) -> dict[str, float]:
    """Return how evenly tokens went to experts since the last call, and the mean of the routers' loss where it trains.

    Nothing without experts. Collective: every rank.
    """
    load = parts.policy.expert_load
    if load is None:
        return {}
    balance = parts.policy.balance
    seen = (0.0, 0) if balance is None else balance.take_seen()
    loss_sum, count, *counts = parts.policy.mesh.sum([*seen, *load.take()])
    return spread(counts, load.sizes) | ({"router_loss": loss_sum / count} if count else {})


def tell(
    parts: RunParts, state: TrainState, result: StepResult, lr: float, times: StepTimes, is_logged: bool
) -> None:
    """Record a step, and what the objective warns of where a line is written. Collective: every rank."""
    shares = look_at_pace(parts, state, times.data_wait_s) | (spread_of_experts(parts) if is_logged else {})
    means = parts.journal.step(state, result, lr, times, is_logged, shares)
    if is_logged and (why := parts.objective.warning(means)) is not None:
        parts.journal.warned(state, why)


def mind_memory(parts: RunParts, state: TrainState, result: StepResult) -> None:
    """Collect garbage if that is due, and get the memory for saves once there are moments."""
    parts.gc.collect_if_due(state.step)
    if parts.saves_in_background and result.is_sound:
        parts.saver.reserve()


def look_for_spike(parts: RunParts, state: TrainState, result: StepResult) -> Spike | None:
    """Judge a step by those before it, and learn from it what is usual. Collective: every rank."""
    if parts.spikes is None or not (result.is_sound or result.is_refused) or state.step in state.passed_over:
        return None
    numbers = {LOSS: result.loss, NORM: result.grad_norm}
    spike = parts.spikes.find(state, numbers)
    parts.spikes.learn(state, numbers, spike is not None)
    return spike


def go_back(parts: RunParts, state: TrainState, spike: Spike) -> bool:
    """Record a spike; where it is to be rewound, load a checkpoint before it, and tell so. Collective: every rank."""
    assert parts.spikes is not None
    at = state.step
    before = None
    if parts.spikes.rewinds(state):
        settle(parts, state)  # it may be what is gone back to
        before = parts.saver.go_back(at - 1 - parts.spikes.rewind_steps)
    parts.journal.spiked(state, spike, None if before is None else before.step)
    if before is None:
        return False
    before.rewinds, before.attempts = state.rewinds + 1, state.attempts
    before.passed_over = state.passed_over
    for field in dataclasses.fields(state):
        setattr(state, field.name, getattr(before, field.name))
    parts.spikes.pass_over(state, at - 1)
    parts.loader.forget()
    parts.mixing.restore(state)
    take_round_again(parts, state)
    parts.journal.went_back(state)
    return True


def look_at_pace(parts: RunParts, state: TrainState, data_wait_s: float) -> dict[str, float]:
    """Record which ranks became slow, or no longer are; return the slowest, as it is logged. Collective: every rank."""
    if parts.pace is None:
        return {}
    for change in parts.pace.step(data_wait_s):
        parts.journal.paced(state, change)
    return parts.pace.stragglers.slowest


def advance(state: TrainState, result: StepResult, batch: StepBatch) -> None:
    """Count a step and chain the digest of what it consumed."""
    state.step += 1
    state.tokens_seen += batch.num_tokens_global
    state.data_digest = chain_digest(state.data_digest, batch.digest)
    state.plan, state.replay_ratio = batch.after.to_plain(), batch.replay_ratio
    for so_far, counts in (
        (state.targets_by_source, batch.num_targets_by_source),
        (state.tokens_by_source, batch.num_tokens_by_source),
    ):
        for name, count in counts.items():
            so_far[name] = so_far.get(name, 0) + count
    state.skipped_steps += not result.is_sound
    if not result.is_refused:  # that changed nothing
        state.bad_steps_in_a_row = 0 if result.is_sound else state.bad_steps_in_a_row + 1


def evaluate(parts: RunParts, state: TrainState, cadence: Cadence) -> dict[str, float]:
    """Take held-out losses and let patience and the replay ratio answer; return what was measured, as it is logged.

    Collective: every rank.
    """
    PROGRESS.begin(Phase.evaluate)
    started = time.perf_counter()
    losses = parts.evaluator.evaluate(state)
    state.last_evaluated_step = state.step
    measured = {by_source("eval", name): loss for name, loss in losses.items()}
    if losses:
        state.last_losses = losses
        if state.step == 0:
            state.base_losses = losses
        mean = measured["eval_mean"] = parts.evaluator.mean(losses)
        best = math.inf if state.best_loss is None else state.best_loss
        # Never true for NaN.
        if mean < best - cadence.min_delta_nats and not state.bad_steps_in_a_row:
            state.best_loss = mean
            state.evaluations_without_gain = 0
        else:
            state.evaluations_without_gain += 1
        measured |= parts.evaluator.drift(state) | parts.evaluator.preferences(state)
    parts.journal.evaluation(state, measured, time.perf_counter() - started)
    decision = parts.mixing.steer(state, measured.get(by_source("kl", CHAT_PROMPTS)))
    if decision is not None:
        parts.journal.steered(state, decision)
    return measured


def is_new_best(parts: RunParts, state: TrainState, measured: dict[str, float]) -> bool:
    """Tell whether a checkpoint is due because it is the best so far."""
    return parts.best is not None and parts.best.saves_at_once and parts.best.improves(state, measured)


def save(parts: RunParts, state: TrainState, measured: dict[str, float], is_last: bool = True) -> bool:
    """Save a sound state, and tell whether it is one; wait for the disk if it is the last. Collective: every rank.

    Args:
        measured: What was measured after this very step: another one cannot be the best by it.
    Raises:
        CheckpointError: The last one cannot be written.
    """
    PROGRESS.begin(Phase.save)
    parts.stop_flag.when = saving(state.step)
    settle(parts, state)
    if parts.clock is not None:
        parts.clock.begins()
    why: str | None = f"{many(state.bad_steps_in_a_row, 'non-finite step')} in a row"
    if not state.bad_steps_in_a_row:
        best_so_far = best_of(state)
        if parts.best is not None:
            parts.best.take(state, measured)
        why = parts.saver.begin(state, best_so_far, parts.saves_in_background and not is_last)
    if why is not None:
        parts.journal.not_saved(state, why)
        return False
    if is_last or not parts.saves_in_background:
        settle(parts, state, is_last)
    return True


def settle(parts: RunParts, state: TrainState, is_last: bool = False) -> None:
    """Put what was being saved in its place, or tell why not and when it is tried again. Collective: every rank.

    Raises:
        CheckpointError: It cannot be written, and is the last.
    """
    saved = parts.saver.settle(parts.journal.bring_to_disk)
    if saved is None:
        return
    if saved.problem is None:
        # The last one may have to wait for one that goes on beside the training.
        parts.stop_flag.has_taken(save_s=saved.seconds * (2 if parts.saves_in_background else 1))
        if parts.clock is not None:
            parts.clock.took(saved.stall_s, saved.seconds)
        parts.journal.saved(saved)
        return
    if is_last:
        raise CheckpointError(saved.problem)
    if state.best_step == saved.state.step:  # it is not there
        state.best_metric, state.best_value, state.best_step = saved.best_before
    again = parts.saver.try_again(state.step)
    parts.journal.not_saved(saved.state, f"{saved.problem} It is tried again after step {again}.")


def is_out_of_patience(state: TrainState, cadence: Cadence) -> bool:
    """Tell whether the held-out loss has not fallen for `patience` evaluations."""
    return cadence.patience is not None and state.evaluations_without_gain >= cadence.patience
