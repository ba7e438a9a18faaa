"""The only place that imports trackio, and only when a run wants it."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from typing import Any, ClassVar

from trainer.config.log import TrackioConfig
from trainer.metrics.tracker import Bookmark, Conclusion, Numbers, RunCard, Told, new_run_id

_LOG = logging.getLogger(__name__)


class TrackioTracker:
    """Sends numbers to one trackio run.

    Ranks:
        Rank 0 only.
    """

    takes_back: ClassVar = False

    def __init__(self, run: Any) -> None:
        """Take a started run."""
        self._run = run

    def write(self, step: int, numbers: Numbers) -> None:
        """Log the numbers of one step; trackio writes them within half a second."""
        self._run.log(dict(numbers), step=step)

    def conclude(self, found: Conclusion) -> None:
        """Log the numbers, and the words and the table as Markdown."""
        from trackio import Markdown

        self._run.log({**found.numbers, "forgetting_table": Markdown(found.markdown)}, step=found.step)

    def close(self, status: str | None) -> None:
        """Wait until everything is written; trackio knows no end of a run."""
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()


def open_trackio(options: TrackioConfig, card: RunCard, bookmark: Bookmark) -> TrackioTracker:
    """Begin a run, or go on in the one of the bookmark: trackio knows runs by their names."""
    folder = options.dir or os.environ.get("TRACKIO_DIR") or str(card.run_dir.resolve() / "trackio")
    # Read once, when trackio is imported.
    os.environ["TRACKIO_DIR"] = folder
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        import trackio
        from trackio import context_vars

        name = bookmark.run_id or f"{card.name}-{new_run_id()}"
        run = trackio.init(
            project=card.project,
            name=name,
            group=card.group,
            space_id=options.space,
            config=dict(card.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
    # Else it ends the run once more, aloud, when the process ends.
    context_vars.current_run.set(None)
    bookmark.begin(name)
    # What was on its way to the database when a process was killed is not in it.
    bookmark.mark = min(bookmark.mark, Told.through(run._next_step - 1))
    where = (
        options.space or f"{folder}; see it with: TRACKIO_DIR={folder} trackio show --project {card.project}"
    )
    _LOG.info("trackio: run %s in %s", name, where)
    return TrackioTracker(run)
