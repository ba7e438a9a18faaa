"""`palimpsest data VERB`: rows made of rows, a source file for `prepare`. One process."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trainer import __version__
from trainer.command.missing_here import refuse_missing
from trainer.config.check_synthetic import needed_problems
from trainer.config.many import many
from trainer.config.schema import RunConfig
from trainer.config.synthetic import SyntheticConfig
from trainer.errors import Exit
from trainer.metrics.long_work import LongWork
from trainer.runtime.say import say
from trainer.runtime.signals import StopFlag
from trainer.synthetic.best_answers import UselessVerifier
from trainer.synthetic.made_file import MadeFile, MadePart, Row, in_parts

SAMPLING = ("max_new_tokens", "temperature", "top_p")
"""Keys that decide what is sampled."""
MODEL_FREE_PART = 64
"""Given rows of a part where no model is asked: a part is synced to disk."""

MakePart = Callable[[range, int], MadePart]


@dataclass(frozen=True, slots=True)
class DataRecipe:
    """What a verb makes, known before a model is loaded."""

    decided_by: dict[str, Any]
    """JSON values of all that decides the rows."""
    num_rows: int
    at_once: int
    """Given rows of a part."""
    open: Callable[[], MakePart]
    """Loads what is asked, and returns what makes the part of some given rows by its number."""
    lines: Callable[[Sequence[dict[str, Any]], int], list[str]]
    """What is said of the notes on all given rows and the number of rows made."""
    is_kept: Callable[[], Callable[[Row], bool]] | None = None
    """Gives what is asked of every row once all are there."""


def make_rows(command: str, config: RunConfig) -> int:
    """Make the file that is asked for; return the exit code.

    Raises:
        TrainerError: Something is missing, cannot be read or stands in the way.
    """
    verb = command.removeprefix("data ")
    refuse_missing(config, command, more=list(needed_problems(config.synthetic, verb)))
    with contextlib.ExitStack() as stack:
        match verb:
            case "raft":
                from trainer.command.data_raft import raft_recipe

                recipe = raft_recipe(config)
            case "sample":
                from trainer.command.data_sample import sample_recipe

                recipe = sample_recipe(config, stack)
            case "judge":
                from trainer.command.data_judge import judge_recipe

                recipe = judge_recipe(config)
            case "revise":
                from trainer.command.data_revise import revise_recipe

                recipe = revise_recipe(config)
            case _:
                from trainer.command.data_questions import questions_recipe

                recipe = questions_recipe(config)
        return make_file(config.synthetic, verb, recipe)


def deciding(
    options: SyntheticConfig, section: Any, digests: dict[str, Any], samples: bool
) -> dict[str, Any]:
    """Return the options that decide what a verb makes as JSON values: places by the digest of what is there.

    Args:
        section: The verb's own.
        digests: Of rows, models and files, by key of the section or a name.
        samples: Texts are sampled.
    """
    own = {name: getattr(value, "value", value) for name, value in dataclasses.asdict(section).items()}
    shared = {name: getattr(options, name) for name in ("seed", "system", *(SAMPLING if samples else ()))}
    return {**own, **shared, **digests}


def make_file(options: SyntheticConfig, verb: str, recipe: DataRecipe) -> int:
    """Make the file of a recipe, go on with it, or show the one that is there."""
    console = Console(soft_wrap=True)
    target = Path(options.output or "").expanduser()
    made = MadeFile(target, verb, recipe.decided_by)
    meta = made.find()
    if meta is not None:
        say(console, "These rows are there already.")
        return _show(console, target, meta, made)
    make = recipe.open()
    parts = in_parts(recipe.num_rows, recipe.at_once)
    with StopFlag(tells=True) as stop, made.claimed(), _progress(verb, recipe) as show:
        stop.when = "after the rows that are under way, which are kept; the same command goes on."
        meta = made.find()  # of a process that was at it a moment ago
        if meta is None:
            try:
                notes = made.make(
                    len(parts), lambda number: make(parts[number], number), lambda: stop.requested, show
                )
            except UselessVerifier:
                made.clear()
                raise
            if notes is None:
                say(Console(stderr=True), "Stopped by a signal. Start the same command again to go on.")
                return Exit.preempted
            facts = {"palimpsest": __version__}
            meta = made.publish(facts, lambda num_rows: recipe.lines(notes, num_rows), recipe.is_kept)
    return _show(console, target, meta, made)


def _show(console: Console, target: Path, meta: dict[str, Any], made: MadeFile) -> int:
    made.clear()
    for line in meta["report"]:
        say(console, line)
    say(console, f"{many(meta['rows'], 'row')}: {target}")
    return Exit.done


@contextlib.contextmanager
def _progress(verb: str, recipe: DataRecipe) -> Iterator[Callable[[int], None]]:
    """Give what shows how many parts are done: a bar on a terminal, now and then a line elsewhere."""
    console, total = Console(file=sys.stderr), recipe.num_rows
    if console.is_terminal:
        columns = (TextColumn(f"data {verb}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=total)
            yield lambda parts: bar.update(task, completed=min(parts * recipe.at_once, total))
        return
    pace: LongWork | None = None
    before = 0

    def tell(parts: int) -> None:
        nonlocal pace, before
        done = min(parts * recipe.at_once, total)
        if pace is None:  # rows of an earlier start tell nothing about the speed of this one
            pace, before = LongWork(total - done, lambda line: say(console, line)), done
        pace.at(done - before, f"Row {done:,} of {total:,}")

    yield tell
