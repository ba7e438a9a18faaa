"""Finds the Arrow files of a folder that `save_to_disk` of the library `datasets` wrote, in the order of its rows.

The library reads such a folder by the same files; ours keeps an indices mapping too, which older versions wrote beside
the data and newer ones pass over.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.many import many
from trainer.data.rows.reading import join_names
from trainer.data.rows.split_names import Asked
from trainer.errors import DataError

DICT, STATE = "dataset_dict.json", "state.json"
SAVED_RECORDS = (DICT, STATE)


@dataclass(slots=True)
class SavedRows:
    """The Arrow files of one split, and those of its indices mapping if it has one."""

    files: list[Path]
    order: list[Path]
    lines: list[str]


def find_saved(folder: Path, asked: Asked) -> SavedRows | None:
    """Return the files of the split that is asked for, or None if the folder is another one.

    Raises:
        DataError: If it has no such split, or its records are not as the library writes them.
    """
    if (folder / DICT).is_file():
        splits = _read(folder / DICT, asked).get("splits")
        if not isinstance(splits, list) or not all(isinstance(split, str) for split in splits):
            raise _broken(folder / DICT, asked, "it lists no splits")
        _refuse_subset(folder, asked)
        if asked.split not in splits:
            raise DataError(
                f"`{asked.key}.split` must be one of [{', '.join(splits)}], the splits of the DatasetDict in "
                f"'{folder}', but is '{asked.split}' instead. Set {asked.key}.split."
            )
        saved = _of_split(folder / asked.split, asked)
        others = join_names([split for split in splits if split != asked.split]) or "none"
        title = f"a DatasetDict saved to disk: split '{asked.split}' (other splits: {others})"
    elif (folder / STATE).is_file():
        _refuse_subset(folder, asked)
        saved = _of_split(folder, asked)
        split = _read(folder / STATE, asked).get("_split")
        if asked.split not in ("train", split):
            raise DataError(
                f"`{asked.key}.split` must be left out for a Dataset saved to disk, which is one split "
                f"({split or 'without a name'}), but is '{asked.split}' instead."
            )
        title = f"a Dataset saved to disk{f', split {split!r}' if split else ''}"
    else:
        return None
    return SavedRows(saved.files, saved.order, [f"{title}: {many(len(saved.files), 'file')}", *saved.lines])


def _of_split(folder: Path, asked: Asked) -> SavedRows:
    state, lines = _read(folder / STATE, asked), []
    files = _named(folder, state, "_data_files", asked)
    if not files:
        raise DataError(
            f"`{asked.key}.path` must hold rows, but '{folder}' is a dataset without one instead. Drop it."
        )
    order = _named(folder, state, "_indices_data_files", asked)
    if order:
        lines.append("rows are read by the folder's indices mapping")
    formatted = state.get("_format_columns")
    if formatted is not None:
        lines.append(
            f"columns of its set_format, which is passed over: {join_names(list(map(str, formatted)))}"
        )
    unread = sorted(
        file.name
        for file in folder.iterdir()
        if file.is_file() and file not in (*files, *order) and file.suffix != ".json"
    )
    if unread:
        lines.append(f"files of the folder that are not read: {join_names(unread)}")
    return SavedRows(files, order, lines)


def _named(folder: Path, state: dict[str, Any], field: str, asked: Asked) -> list[Path]:
    entries = state.get(field) or []
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("filename"), str) for entry in entries
    ):
        raise _broken(folder / STATE, asked, f"its {field} names no files")
    if any(set(entry) - {"filename"} for entry in entries):
        raise _broken(folder / STATE, asked, f"its {field} takes parts of files, as early versions wrote it")
    files = [folder / entry["filename"] for entry in entries]
    for file in files:
        if not file.is_file():
            raise DataError(
                f"`{asked.key}.path` must hold every file that '{folder / STATE}' lists, but '{file}' is missing "
                "instead. Copy the whole folder."
            )
    return files


def _read(file: Path, asked: Asked) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"`{asked.key}.path` must be a whole folder of save_to_disk, but '{file}' is missing instead. Copy the "
            "whole folder."
        ) from None
    except (ValueError, RecursionError) as error:
        raise _broken(file, asked, f"it is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise _broken(file, asked, "it holds no object")
    return found


def _broken(file: Path, asked: Asked, reason: str) -> DataError:
    return DataError(
        f"`{asked.key}.path` must hold records as save_to_disk writes them, but '{file}' is not so: {reason}. Save the "
        "dataset anew, or name its .arrow files."
    )


def _refuse_subset(folder: Path, asked: Asked) -> None:
    if asked.subset is not None:
        raise DataError(
            f"`{asked.key}.subset` must be null for a folder saved to disk, but is '{asked.subset}' for '{folder}' "
            "instead. Leave it out."
        )
