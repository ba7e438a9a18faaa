"""TensorBoard's event files, by torch's own writer. The only place that imports it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, ClassVar

from trainer.metrics.tracker import Bookmark, Conclusion, Numbers, RunCard, Told


class TensorboardTracker:
    """Writes event files of one run; each write is in the file when it returns.

    Ranks:
        Rank 0 only.
    """

    takes_back: ClassVar = True

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        """Open a new event file; readers drop what older ones hold from `purge_step` on."""
        self._folder = folder
        self._step = 0
        self._of_step: dict[str, float] = {}
        self._writer: Any = self._opened(purge_step)

    def write(self, step: int, numbers: Numbers) -> None:
        """Add one point to the curve of every number; an earlier step than before takes back what came from it on."""
        before = self._of_step if step == self._step else {}
        is_back, self._step, self._of_step = step < self._step, step, {**before, **numbers}
        if is_back:
            self._writer.close()
            self._writer = None
        if self._writer is None:
            # What the file before has of this step is not seen any more.
            self._writer, numbers = self._opened(step), self._of_step
        try:
            for name, value in numbers.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()
        except Exception:
            self._writer = None  # its thread is gone, and the end of its file torn
            raise

    def conclude(self, found: Conclusion) -> None:
        """Add the numbers, and the words and the table as a text."""
        self.write(found.step, found.numbers)
        self._writer.add_text("forgetting", found.markdown, found.step)
        self._writer.flush()

    def close(self, status: str | None) -> None:
        """Close the file; how the run ended is a text."""
        if self._writer is None:
            return
        if status is not None:
            self._writer.add_text("status", status, self._step)
        self._writer.close()

    def _opened(self, purge_step: int | None) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        _keep_threads_quiet()
        return SummaryWriter(str(self._folder), purge_step=purge_step)


def _keep_threads_quiet() -> None:
    """Print no traceback of the thread that writes a file: what ended it is raised where it is written to, and said."""
    before = threading.excepthook
    if before.__module__ == __name__:
        return

    def tell(found: threading.ExceptHookArgs) -> None:
        if not type(found.thread).__module__.startswith("tensorboard."):
            before(found)

    threading.excepthook = tell


def open_tensorboard(
    folder: Path, card: RunCard, bookmark: Bookmark, resumed_step: int
) -> TensorboardTracker:
    """Begin, or go on after the resumed step: what was written of later steps is dropped by TensorBoard.

    The folder is of this run alone: what an abandoned one left there is dropped as well.
    """
    # The step of the bookmark is told once more: the process may have ended within its records.
    first = min(bookmark.mark.step, resumed_step + 1)
    is_new = not any(folder.glob("events.out.tfevents.*"))
    tracker = TensorboardTracker(folder, None if is_new else max(first, 0))
    bookmark.run_id = card.name
    bookmark.mark = Told() if is_new else Told.through(first - 1)
    bookmark.keep()
    return tracker
