"""The rows of a source with their size and what names their content, and how many of them are taken, as it is shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from trainer.config.data import DataConfig, SourceConfig
from trainer.config.many import many
from trainer.data.remote.fetched import RemoteFile
from trainer.data.rows.files import Listing, hash_files, list_files
from trainer.data.rows.hub import open_dataset, read_dataset
from trainer.data.rows.source import SourceRows, read_files
from trainer.data.store.intake import Intake
from trainer.data.store.prepared import cache_folder, stores_folder
from trainer.runtime.say import say

LINE_EVERY_S = 10.0
MIB = 1 << 20


@dataclass(slots=True)
class SizedRows:
    """The rows of a source, what names their content, and their size."""

    rows: SourceRows
    origin: Any
    """None for files behind an address, until they were read."""
    num_bytes: int
    listing: Listing | None = None

    @property
    def read_origin(self) -> Any:
        """What names their content, once they were read."""
        return self.origin if self.listing is None or self.origin is not None else hash_files(self.listing)

    @property
    def remote(self) -> list[RemoteFile]:
        """The files behind an address."""
        return [f for f in self.listing.files if isinstance(f, RemoteFile)] if self.listing else []

    @property
    def fetched(self) -> str:
        """What came of the files behind an address, in words; empty for others."""
        files = self.remote
        if not files:
            return ""
        done = sum(file.sha256 is not None for file in files)
        num_mib = sum(file.num_fetched for file in files) / MIB
        return f"{done:,} of {len(files):,} files fetched whole, {num_mib:,.1f} of {self.num_bytes / MIB:,.1f} MiB"


def open_rows(name: str, source: SourceConfig, data: DataConfig) -> SizedRows:
    """Open the rows of a source, of files or of a dataset.

    Raises:
        DataError: It cannot be read as configured.
    """
    if source.path is not None:
        listing = list_files(name, source, stores_folder(data))
        rows = SizedRows(read_files(name, source, listing, data.values), None, listing.num_bytes, listing)
        rows.origin = None if rows.remote else hash_files(listing)
        return rows
    dataset = open_dataset(name, source, cache_folder(data) / "datasets")
    origin = [source.dataset, source.subset, source.split, source.revision, dataset._fingerprint]
    return SizedRows(read_dataset(name, source, dataset, data.values), origin, int(dataset.data.nbytes))


@contextmanager
def taking(intake: Intake, rows: SizedRows, console: Console) -> Iterator[Callable[[], None]]:
    """Give what shows how many rows are taken, on a terminal in place and elsewhere as lines."""
    if not console.is_terminal:
        with _plain(intake, rows, console) as show:
            yield show
        return
    columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()]
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(intake.name, total=None)
        yield lambda: bar.update(task, description=_describe(intake, rows))


@contextmanager
def _plain(intake: Intake, rows: SizedRows, console: Console) -> Iterator[Callable[[], None]]:
    last = time.monotonic()

    def show() -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_EVERY_S:
            last = time.monotonic()
            say(console, _describe(intake, rows))

    yield show
    say(console, _describe(intake, rows))


def _describe(intake: Intake, rows: SizedRows) -> str:
    fetched = f"; {rows.fetched}" if rows.remote else ""
    kept = many(intake.spool.num_tokens, "token") if intake.spool.num_tokens else "none of which is kept"
    return f"{intake.name}: {many(intake.counts['rows'], 'row')}, {kept}{fetched}"
