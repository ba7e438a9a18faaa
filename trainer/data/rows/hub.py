"""Reads datasets of the Hugging Face hub. The only file that imports `datasets`, when it is needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.config.data import SourceConfig, TokenValue
from trainer.data.formats.fault import first_line, raise_if_disk
from trainer.data.formats.opened import NumberedRow, Opened
from trainer.data.formats.table import BATCH_ROWS, check_type, plain_rows
from trainer.data.rows.source import SourceRows
from trainer.errors import DataError

if TYPE_CHECKING:
    import datasets


def open_dataset(name: str, source: SourceConfig, cache: Path) -> datasets.Dataset:
    """Download or find a Hugging Face dataset, whole.

    Raises:
        DataError: If it cannot be had, or its values are guesses.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        dataset = datasets.load_dataset(
            source.dataset,
            source.subset,
            split=source.split,
            revision=source.revision,
            cache_dir=str(cache),
        )
    except Exception as error:  # the hub, its scripts and readers raise whatever they like
        raise_if_disk(error)
        raise DataError(
            f"`data.sources.{name}.dataset` must name a dataset that can be read, but "
            f"'{source.dataset}' (subset {source.subset}, split {source.split}, revision "
            f"{source.revision}) cannot be: {first_line(error)}. Check the name, or download it and "
            f"set data.sources.{name}.path."
        ) from error
    if dataset.info.builder_name == "csv":
        raise DataError(
            f"`data.sources.{name}.dataset` must hold JSON, Parquet or text, but '{source.dataset}' holds CSV "
            "instead, whose values the library `datasets` guesses (NA, 007, dates). Download it and set "
            f"data.sources.{name}.path."
        )
    return dataset


def read_dataset(
    name: str, source: SourceConfig, dataset: datasets.Dataset, values: Collection[TokenValue] = ()
) -> SourceRows:
    """Read the rows of a Hugging Face dataset in its order; `values` as read_files has them."""
    if source.max_documents is not None:
        dataset = dataset.select(range(min(source.max_documents, len(dataset))))
    label = str(source.dataset)
    notes: Counter[str] = Counter()

    def read(wanted: list[str], watched: list[str]) -> Iterator[NumberedRow]:
        fix = (
            "The library `datasets` may have taken text for it: download the dataset and set "
            f"data.sources.{name}.path."
        )
        for column in wanted:
            check_type(column, dataset.data.schema.field(column).type, label, fix)
        chosen = dataset.select_columns([*wanted, *watched]).with_format("arrow")
        tables = chosen.iter(batch_size=BATCH_ROWS)
        rows = (row for table in tables for row in plain_rows(table, wanted, watched, label, notes))
        yield from enumerate(rows, 1)

    opened = Opened(label, label, "row", list(dataset.column_names), True, read, lambda: notes)
    return SourceRows(name, source, iter([opened]), values)
