"""Config section for benchmark tasks: which tasks of lm-eval are run on the base and on the tuned model."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class TasksConfig:
    """Tasks of lm-eval (the extra `eval`), scored by the model that is loaded, on all ranks."""

    names: list[str] = field(default_factory=list)
    """Tasks, groups and tags, of lm-eval and of include_path; empty: none. Training scores the base with them before
    the first step and the tuned model at its end, `palimpsest evaluate` whatever it evaluates."""
    include_path: str | None = None
    """Folder with task YAML files of your own; they come before lm-eval's. Relative `data_files` in one count from the
    folder it lies in."""
    num_fewshot: int | None = None
    """Examples before each question; null: as each task says. Tasks that say 0 keep it."""
    limit: int | None = None
    """Documents of each task; null: all."""
    batch_tokens: int = 8192
    """Tokens, padding and tokens to be generated included, that one rank puts through the model at once."""
    max_length: int | None = None
    """Longest input in tokens, cut on the left; null: the model's context. Perplexity tasks fill it, so set it for
    models with a very long one."""
    apply_chat_template: bool = False
    """Put questions into the chat template, few-shot examples as turns. For chat models."""
