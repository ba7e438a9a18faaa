"""One line a logged step on standard output, and a progress bar when that is a terminal.

Without a terminal it writes plain ASCII lines of at most 120 columns and no control characters.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from trainer.config.metric import ACCURACY, ANSWER_LOSS, POINT
from trainer.metrics.sink import Record, Value
from trainer.runtime.say import say

_WIDTH = 120
_SOURCE_CHARS = 16
# Names of sources are cut to these lengths, one after the other, until the line fits.
_SHORTER_SOURCE_CHARS = (_SOURCE_CHARS, 12, 10, 8, 6, 4)
_PARTS = {"pair_loss": "pairs", "answer_loss": "answers", "nll_chosen": "chosen", "divergence": "divergence"}
"""Parts of a loss, and what the line calls them."""


class ConsoleSink:
    """Prints records for a person; keys it does not know are left out.

    Ranks:
        Rank 0 only.
    """

    def __init__(self, total_steps: int, progress: bool = True, stream: TextIO | None = None) -> None:
        """Take the length of the run; the bar appears with the first record."""
        self._total_steps = total_steps
        self._stream = stream if stream is not None else sys.stdout
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if progress and self._stream.isatty() and os.environ.get("TERM") != "dumb":
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(bar_width=40),
                MofNCompleteColumn(),
                TextColumn("{task.fields[eta]}"),
                console=Console(file=self._stream),
                auto_refresh=False,
                transient=True,
            )
            self._task = self._bar.add_task("training", total=total_steps, eta="")

    def write(self, step: int, record: Record) -> None:
        """Print the training line and the evaluation line, whichever the record has."""
        if any(key.startswith("eval/") for key in record):
            self._print(evaluation_line(step, record))
        if any(key.startswith("tasks/") for key in record):
            self._print(task_line(step, record))
        if "loss" in record:
            self._print(training_line(step, self._total_steps, record))
        if self._bar is not None:
            self._bar.start()
            eta = f"ETA {duration_text(record['eta_s'])}" if "eta_s" in record else ""
            self._bar.update(self._task, completed=step, eta=eta, refresh=True)

    def close(self, status: str) -> None:
        """Remove the bar; the lines stay."""
        if self._bar is not None:
            self._bar.stop()
        self._stream.flush()

    def _print(self, text: str) -> None:
        if self._bar is not None:
            say(self._bar.console, text)
        else:
            self._stream.write(text + "\n")
            self._stream.flush()


def training_line(step: int, total_steps: int, record: Record) -> str:
    """Return the line of one logged step; names of sources give way first, then the last ones."""
    head = [f"{step}/{total_steps}", f"loss {float(record['loss']):.4f}"]
    tail: list[str] = []
    if "kl_replay" in record:
        tail.append(f"KL {float(record['kl_replay']):.3g}")
    if "answer_tokens" in record:
        ended = 100 * float(record["answers_ended"])
        tail.append(f"answers {float(record['answer_tokens']):.0f} tok, {ended:.0f}% ended")
    if "lr" in record:
        tail.append(f"lr {float(record['lr']):.2e}")
    if "grad_norm" in record:
        tail.append(f"grad {float(record['grad_norm']):.3g}")
    if "tokens_per_s" in record:
        tail.append(f"{_count(record['tokens_per_s'])} tok/s")
    if "mfu" in record:
        tail.append(f"MFU {100 * float(record['mfu']):.1f}%")
    if "memory_gib" in record:
        tail.append(f"{float(record['memory_gib']):.1f} GiB")
    if "eta_s" in record:
        tail.append(f"ETA {duration_text(record['eta_s'])}")
    variants = (_join(head, shown, tail) for shown in _ways_to_show(record))
    return next((line for line in variants if len(line) <= _WIDTH), _join(head, tail))


def evaluation_line(step: int, record: Record) -> str:
    """Return the held-out losses of one evaluation, wrapped when there are many sources."""
    right = {
        name: _ranked(record, name)
        for key in record
        if key.startswith(f"{ACCURACY}/") and (name := key.removeprefix(f"{ACCURACY}/"))
    }
    shown = [f"{name}: {said}" for name, said in right.items()]
    prefix = f"{ANSWER_LOSS}/"
    for key, loss in record.items():
        if key.startswith(prefix):
            shown.append(f"{key.removeprefix(prefix)}: loss of answers {float(loss):.4f}")
    if POINT in record:
        shown.append(f"point of reference {float(record[POINT]):.3g}")
    text = _join([f"step {step} held-out"], _by_source(record, "eval/", _SOURCE_CHARS, 4), shown)
    return "\n".join(textwrap.wrap(text, _WIDTH, subsequent_indent="    "))


def _ranked(record: Record, name: str) -> str:
    """Return the share of held-out pairs that is ranked right, with its interval."""
    share, low, high = (
        f"{100 * float(record[key]):.0f}" if (key := f"{ACCURACY}{end}/{name}") in record else "?"
        for end in ("", "_low", "_high")
    )
    return f"{share}% of pairs right ({low} to {high}%)"


def task_line(step: int, record: Record) -> str:
    """Return the scores of benchmark tasks, wrapped when there are many."""
    shown = {key: value for key, value in record.items() if not key.endswith("_stderr")}
    text = _join([f"step {step} tasks"], _by_source(shown, "tasks/", 2 * _SOURCE_CHARS, 4))
    return "\n".join(textwrap.wrap(text, _WIDTH, subsequent_indent="    "))


def _ways_to_show(record: Record) -> Iterator[list[str]]:
    """Yield what may stand between the loss and the rest, the most first."""
    parts = _parts_of(record)
    for num_chars in _SHORTER_SOURCE_CHARS:
        sources = _by_source(record, "loss/", num_chars, 3)
        # With one source its loss is the loss, unless there are other parts of it.
        yield [*parts, *(sources if len(sources) > 1 or parts else [])]
    sources = _by_source(record, "loss/", _SOURCE_CHARS, 3)
    for num_shown in range(len(sources) - 1, 0, -1):
        yield [*parts, *sources[:num_shown], "..."]
    for num_shown in range(len(parts) - 1, 0, -1):
        yield parts[:num_shown]


def _parts_of(record: Record) -> list[str]:
    """Return the parts of a loss, where it has several, how pairs are ranked, and the point of KTO."""
    has_parts = "nll_chosen" in record or any(key.startswith("loss/") for key in record)
    parts = {key: short for key, short in _PARTS.items() if key in record and has_parts}
    shown = [f"{short} {float(record[key]):.3g}" for key, short in parts.items()]
    if "preference_accuracy" in record:
        shown.append(f"right {100 * float(record['preference_accuracy']):.0f}%")
    if "reward_margin" in record:
        shown.append(f"margin {float(record['reward_margin']):+.2g}")
    if "reference_point" in record:
        shown.append(f"point {float(record['reference_point']):.3g}")
    return shown


def _join(*parts: list[str]) -> str:
    return " ".join(text for part in parts for text in part)


def _by_source(record: Record, prefix: str, num_chars: int, digits: int) -> list[str]:
    found = {key.removeprefix(prefix): value for key, value in record.items() if key.startswith(prefix)}
    names = _names([*found], num_chars)
    return [f"{name} {float(value):.{digits}f}" for name, value in zip(names, found.values(), strict=True)]


def _names(sources: Sequence[str], num_chars: int) -> list[str]:
    """Return names as far as there is room, told apart: by their beginnings, else by their ends too, else by number."""
    plain = [
        "".join(char if char.isascii() and char.isprintable() else "?" for char in one) for one in sources
    ]
    head = num_chars // 2
    for first, last in ((num_chars - 1, 0), (head, num_chars - 1 - head)):
        short = [one if len(one) <= num_chars else f"{one[:first]}~{one[len(one) - last :]}" for one in plain]
        if len(set(short)) == len(short):
            return short
    ends = [f"~{number}" for number in range(1, len(plain) + 1)]
    return [f"{one[: max(num_chars - len(end), 1)]}{end}" for one, end in zip(plain, ends, strict=True)]


def _count(value: Value) -> str:
    number = float(value)
    if number >= 1e6:
        return f"{number / 1e6:.2f}M"
    return f"{number / 1e3:.1f}k" if number >= 1e4 else f"{number:.0f}"


def duration_text(value: Value) -> str:
    """Return seconds as 3h12m, 4m05s or 12d03h."""
    seconds = round(float(value))
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    if hours >= 48:
        return f"{hours // 24}d{hours % 24:02d}h"
    if hours > 0:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds % 60:02d}s"
