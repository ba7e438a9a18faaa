"""Rules of `evaluate.scores`: what samples answers, and how many."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.rule import Problem, must
from trainer.config.scores import ScoresConfig

KEY = "evaluate.scores"


def score_problems(options: ScoresConfig) -> Iterator[Problem]:
    """Yield what answers cannot be sampled with."""
    if options.generator is not None and options.file is None:
        fix = f"Set {KEY}.file=FILE, rows with a prompt each."
        yield must(f"{KEY}.generator", f"null without {KEY}.file", options.generator, fix)
    if options.num_answers < 2:
        yield must(f"{KEY}.num_answers", "at least 2", options.num_answers, f"Set {KEY}.num_answers=8.")
    if options.max_new_tokens < 1:
        fix = f"Set {KEY}.max_new_tokens=512."
        yield must(f"{KEY}.max_new_tokens", "at least 1", options.max_new_tokens, fix)
    if not 0 < options.temperature < float("inf"):
        yield must(f"{KEY}.temperature", "more than 0", options.temperature, f"Set {KEY}.temperature=1.")
