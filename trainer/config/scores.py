"""Config section for scoring a file with a reward model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ScoresConfig:
    """`palimpsest evaluate FOLDER evaluate.scores.file=FILE`: scores of rows, by an exported reward model."""

    file: str | None = None
    """Rows (.jsonl): {prompt, chosen, rejected}, {prompt, completion}, or {prompt, answers}, a list, of which the best
    is taken; a prompt and an answer are a text or a list of turns."""
    output_dir: str | None = None
    """Folder of scores.jsonl and summary.json, and of best.jsonl and pairs.jsonl for rows with several answers; null:
    `scores` in the run's directory, or beside the exported folder."""
    as_chat: bool | None = None
    """Render rows with the chat template; null: as the run's sources were, of a folder alone where it has one."""
    generator: str | None = None
    """Folder of a language model, whole or an adapter, that answers the prompt of each row itself, in the place of the
    answers in it: best of n. Null: the answers are in the rows."""
    num_answers: int = 8
    """Answers that it samples to each prompt. Range: 2 or more."""
    max_new_tokens: int = 512
    """Longest answer in tokens; longer ones are cut. Range: 1 or more."""
    temperature: float = 1.0
    """Divides its logits. 1 is the model's own distribution, whatever its generation_config says."""
    seed: int = 0
    """Row k is answered with a seed made of this and k."""
