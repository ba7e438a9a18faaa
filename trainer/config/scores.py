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
