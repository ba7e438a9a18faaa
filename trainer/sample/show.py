"""What a person sees while samples are made and afterwards: a bar or plain lines, a table, three samples."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from trainer.runtime.say import say
from trainer.sample.filters import REASONS
from trainer.sample.generate import Tally
from trainer.sample.samples import SAMPLES

LINE_EVERY_S = 10.0
NUM_SAMPLES = 3
SAMPLE_CHARS = 320


class ProgressView:
    """A bar on a terminal, a line every ten seconds elsewhere.

    Ranks:
        Rank 0 only.
    """

    def __init__(self, goal: int, console: Console) -> None:
        self._goal = goal
        self._console = console
        self._started: tuple[float, int, int] | None = None
        self._last_line = 0.0
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("sampling"), BarColumn(bar_width=40), TextColumn("{task.fields[line]}"),
                console=console, auto_refresh=False, transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task("sampling", total=goal, line="")

    def show(self, tally: Tally) -> None:
        """Show how far the sampling is."""
        now = time.monotonic()
        if self._started is None:
            self._started = (now, tally.num_kept_tokens, tally.num_sampled_tokens)
        line = progress_line(tally, self._goal, now - self._started[0], *self._started[1:])
        if self._bar is not None:
            self._bar.start()
            self._bar.update(self._task, completed=min(tally.num_kept_tokens, self._goal), line=line)
            self._bar.refresh()
        elif now - self._last_line >= LINE_EVERY_S or tally.num_kept_tokens >= self._goal:
            self._last_line = now
            say(self._console, line)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()


def progress_line(
    tally: Tally, goal: int, elapsed_s: float, kept_before: int = 0, sampled_before: int = 0
) -> str:
    """Return one line: how far, what was dropped, how fast, how long still.

    Args:
        kept_before: Tokens that were there when this start began; they tell nothing about its speed.
    """
    parts = [f"kept {tally.num_kept_tokens:,} of {goal:,} tokens"]
    parts.append(f"{tally.num_samples - tally.num_kept:,} of {tally.num_samples:,} samples dropped")
    made = tally.num_kept_tokens - kept_before
    if elapsed_s > 0 and tally.num_sampled_tokens > sampled_before:
        parts.append(f"{(tally.num_sampled_tokens - sampled_before) / elapsed_s:,.0f} tokens/s")
    if made > 0 and elapsed_s > 0 and tally.num_kept_tokens < goal:
        seconds = round((goal - tally.num_kept_tokens) * elapsed_s / made)
        parts.append(f"ETA {seconds // 3600}h{seconds % 3600 // 60:02d}m{seconds % 60:02d}s")
    return ", ".join(parts)


def show_store(store: Path, meta: dict[str, Any], console: Console) -> None:
    """Print what is in a finished store, and the first samples."""
    counts = meta["counts"]
    table = Table(box=None, pad_edge=False)
    for heading in ("", "samples", "tokens"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_row("sampled", f"{counts['samples']:,}", f"{counts['sampled_tokens']:,}")
    table.add_row("kept", f"{counts['kept']:,}", f"{counts['kept_tokens']:,}")
    for reason in REASONS:
        if counts["dropped"].get(reason):
            table.add_row(f"dropped: {reason}", f"{counts['dropped'][reason]:,}", "")
    console.print(table)
    rate = counts["sampled_tokens"] / max(counts["sampling_s"], 1e-9)
    facts = (
        f"{rate:,.0f} tokens/s a rank on {meta['device']} ({meta['engine']}, batches of {meta['batch_size']})"
    )
    say(console, facts)
    with (store / SAMPLES).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if number > NUM_SAMPLES:
                break
            text = f"sample {number}: {_brief(json.loads(line))}"
            say(console, text)
    say(console, f"Store: {store / SAMPLES}")


def _brief(row: dict[str, Any]) -> str:
    turns = row.get("messages") or [{"role": "text", "content": row.get("text", "")}]
    budget = SAMPLE_CHARS // len(turns)
    return " | ".join(f"{turn['role']}: {_cut(turn['content'], budget)}" for turn in turns)


def _cut(text: str, num_chars: int) -> str:
    # A sample may hold anything, control sequences of the terminal too.
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return plain if len(plain) <= num_chars else plain[: num_chars - 3] + "..."
