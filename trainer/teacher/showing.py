"""How far a model is that is asked about many packs: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_LOG = logging.getLogger(__name__)
LINE_EVERY_S = 10.0


@contextmanager
def showing(what: str, num_packs: int, is_first: bool) -> Iterator[Callable[[int], None]]:
    """Give a function that shows how many packs are done, which does nothing on any rank but the first.

    Args:
        what: Is asked about what, for the line.
    """
    console = Console(file=sys.stderr)
    if not is_first or not console.is_terminal:
        last = time.monotonic()

        def show(done: int) -> None:
            nonlocal last
            if is_first and time.monotonic() - last >= LINE_EVERY_S:
                last = time.monotonic()
                _LOG.info("%s: %d of %d packs.", what, done, num_packs)

        yield show
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("packs", total=num_packs)
        yield lambda done: bar.update(task, completed=done)
