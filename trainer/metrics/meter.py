"""Sums over the steps between two log lines, and the numbers made of them.

Takes plain floats that are already reduced over ranks; never touches a device or a process group.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from trainer.metrics.flops import ModelShape, flops_per_token, mfu
from trainer.metrics.mean import Mean

LAST_STEPS = 50
"""Steps by whose median the time of those that are left is reckoned: one that was slow moves nothing."""


@dataclass
class _Window:
    num_steps: int = 0
    step_time_s: float = 0.0
    data_wait_s: float = 0.0
    num_tokens: int = 0
    num_padding: int = 0
    num_targets: int = 0
    sum_len_sq: float = 0.0
    sampling_s: float = 0.0
    num_answers: int = 0
    num_answer_tokens: int = 0
    num_ended: int = 0
    sums: dict[str, float] = field(default_factory=dict)


class Meter:
    """Accumulates steps and losses; `flush` returns their means and starts a new window."""

    def __init__(
        self,
        num_ranks: int,
        shape: ModelShape | None = None,
        peak_flops: float | None = None,
        num_adapter_params: int | None = None,
    ) -> None:
        """Start an empty window.

        `peak_flops` is of one GPU; without it or the shape the record has no MFU.
        `num_adapter_params` are the trainable weights beside a frozen base, else None.
        """
        self._num_ranks = num_ranks
        self._shape = shape
        self._peak_flops = peak_flops
        self._num_adapter_params = num_adapter_params
        self._window = _Window()
        self._last_steps_s: deque[float] = deque(maxlen=LAST_STEPS)
        self._evaluation_s = self._round_s = 0.0
        self._num_steps_seen = 0

    def add(
        self,
        step_time_s: float,
        num_tokens_global: int,
        num_targets_global: int,
        sum_len_sq_global: float,
        data_wait_s: float,
        num_padding_global: int = 0,
    ) -> None:
        """Add one optimizer step.

        `step_time_s` is wall time with the wait for data, without evaluation and saving;
        `sum_len_sq_global` sums the squared lengths of all packed documents in tokens.
        """
        window = self._window
        window.num_steps += 1
        window.step_time_s += step_time_s
        window.data_wait_s += data_wait_s
        window.num_tokens += num_tokens_global
        window.num_padding += num_padding_global
        window.num_targets += num_targets_global
        window.sum_len_sq += sum_len_sq_global
        self._num_steps_seen += 1
        if self._num_steps_seen == 2:
            self._last_steps_s.clear()  # the first step compiles and warms up
        self._last_steps_s.append(step_time_s)

    def add_sums(self, sums: Mapping[str, float]) -> None:
        """Add the sums and counts of a step over all ranks, by name."""
        so_far = self._window.sums
        for name, value in sums.items():
            so_far[name] = so_far.get(name, 0.0) + value

    def add_evaluation(self, seconds: float) -> None:
        """Remember how long the last evaluation took."""
        self._evaluation_s = seconds

    def add_round(self, seconds: float, num_answers: int, num_tokens: int, num_ended: int) -> None:
        """Add a round of answers that were sampled: its wall time, tokens, and answers that ended by themselves."""
        window = self._window
        self._round_s = seconds
        window.sampling_s += seconds
        window.num_answers += num_answers
        window.num_answer_tokens += num_tokens
        window.num_ended += num_ended

    def flush(
        self,
        means: Sequence[Mean] = (),
        remaining_steps: int | None = None,
        memory_gib: float | None = None,
        remaining_evaluations: int = 0,
        remaining_rounds: int = 0,
    ) -> dict[str, float]:
        """Return the record of the window under flat keys and start a new window.

        A number that is unknown (no targets, no peak FLOPs, no steps) has no key.
        """
        window, self._window = self._window, _Window()
        found = {mean.name: mean.of(window.sums) for mean in means}
        record = {name: value for name, value in found.items() if value is not None}
        if window.num_steps > 0 and window.step_time_s > 0:
            record |= self._speed(window) | _sampled(window)
        if memory_gib is not None:
            record["memory_gib"] = memory_gib
        if remaining_steps is not None and self._last_steps_s:
            steps_s = remaining_steps * median(self._last_steps_s)
            record["eta_s"] = steps_s + remaining_evaluations * self._evaluation_s
            record["eta_s"] += remaining_rounds * self._round_s
        return record

    def _speed(self, window: _Window) -> dict[str, float]:
        tokens_per_s = window.num_tokens / window.step_time_s
        tokens_per_s_per_gpu = tokens_per_s / self._num_ranks
        speed = {
            "tokens_per_s": tokens_per_s,
            "tokens_per_s_per_gpu": tokens_per_s_per_gpu,
            "step_time_s": window.step_time_s / window.num_steps,
            "data_wait_frac": window.data_wait_s / window.step_time_s,
        }
        if window.num_tokens > 0:
            speed["targets_frac"] = window.num_targets / window.num_tokens
            speed["padding_frac"] = window.num_padding / window.num_tokens
            if self._shape is not None and self._peak_flops is not None:
                mean_len = window.sum_len_sq / window.num_tokens
                for key, causal in (("mfu", True), ("mfu_non_causal", False)):
                    flops = flops_per_token(self._shape, mean_len, causal, self._num_adapter_params)
                    speed[key] = mfu(tokens_per_s_per_gpu, flops, self._peak_flops)
        return speed


def _sampled(window: _Window) -> dict[str, float]:
    """Return what is said of the answers that were sampled in a window, and the share of its time that took."""
    if not window.sampling_s:
        return {}
    found = {
        "answers_sampled": window.num_answers,
        "sampling_share": window.sampling_s / (window.sampling_s + window.step_time_s),
    }
    if window.num_answers:
        found["answer_tokens"] = window.num_answer_tokens / window.num_answers
        found["answers_ended"] = window.num_ended / window.num_answers
    return found
