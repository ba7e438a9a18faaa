"""Config section for what is evaluated during training beside held-out loss: benchmark tasks, answers, KL."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class AnswersConfig:
    """Fixed prompts that the model answers, most likely token after token: samples.jsonl, and the report."""

    file: str | None = None
    """Prompts of your own: .jsonl with a row {"prompt": "..."} or {"messages": [...]} each, or .txt with one a line.
    null: the beginnings of held-out documents of the target sources."""
    num: int = 0
    """Prompts that are answered; 0: none, or all of `file`."""
    max_new_tokens: int = 64
    """Longest answer in tokens."""
    apply_chat_template: bool = False
    """Put a `prompt`, or a line, into the chat template as a user's turn. `messages` always are."""


@dataclass
class DuringConfig:
    """Benchmark tasks and answers before the first step, every so many steps, and after the last."""

    tasks: list[str] = field(default_factory=list)
    """Tasks, groups and tags of lm-eval; how they are asked is in evaluate.tasks. Scores are tasks/TASK/METRIC in
    metrics.jsonl."""
    every_steps: int = 500
    """Optimizer steps between them; 0: only before the first step and after the last."""
    limit: int | None = None
    """Documents of each task; null: all."""
    max_share: float = 0.1
    """Most of the run's wall time that tasks and answers may take. What would go over is put off until it does not,
    which is said; 1: never put off. Range: (0, 1]."""
    kl: bool = False
    """At every evaluation of held-out loss take the KL to the base too: kl_mean and kl/SET in metrics.jsonl."""
    probes: bool = True
    """At every evaluation of held-out loss read the kinds of text of evaluate.probes once more: probe/KIND, the rise
    over the base in nats a token, and probe_low and probe_high, its 95 % interval, in metrics.jsonl; when each kind was
    lost in the report. With evaluate.probes=auto as long as all readings take at most 2 % of the computation of the
    training."""
    samples: AnswersConfig = field(default_factory=AnswersConfig)

    @property
    def has_samples(self) -> bool:
        """Tell whether prompts are answered."""
        return bool(self.samples.num or self.samples.file)

    @property
    def is_on(self) -> bool:
        """Tell whether tasks are run or prompts answered."""
        return bool(self.tasks) or self.has_samples
