"""What can be known of benchmark tasks without loading lm-eval: whether it is there, names them, and has their data.

For a login node, before a job is handed in. Reads YAML files as text; loads no torch. What it does not find out is
found out where tasks are loaded, on the first node of the job.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from trainer.config.rule import Problem, must, problem

OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
LOCAL = ("json", "csv", "text", "parquet", "arrow")
"""Readers of datasets for files of one's own; everything else is a name of the hub or a folder."""
_NAMED = re.compile(r"^(?:task|group|tag):\s*[\"']?([\w.:+-]+)", re.MULTILINE)


def known_problems(
    key: str, names: Sequence[str], include_path: str | None, variables: Mapping[str, str]
) -> Iterator[Problem]:
    """Yield what is wrong with names of tasks before anything is loaded.

    Args:
        key: Where the names are from.
        variables: The environment of the job.
    """
    if not names:
        return
    lacking = [*harness_problems(key, names, include_path)]
    if lacking:
        yield from lacking
        return
    own = [] if include_path is None else [Path(include_path).expanduser()]
    folders = [*own, Path(_package()) / "tasks"]
    files, left = find_names(names, folders)
    if left:
        known = _all_names(folders)
        for name in left:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            yield must(
                key,
                "names of tasks of lm-eval or of include_path",
                name,
                (f"Did you mean '{near[0]}'? " if near else "") + "`lm_eval ls tasks` lists lm-eval's.",
            )
    if any(variables.get(name, "").lower() in ("1", "true", "yes", "on") for name in OFFLINE):
        yield from _missing_data(key, files, variables)


def harness_problems(key: str, names: Sequence[str], include_path: str | None) -> Iterator[Problem]:
    """Yield a problem where names are asked for and lm-eval, or the folder of one's own tasks, is not there."""
    if names and not _package():
        fix = "Install it with: pip install 'palimpsest-trainer[eval]'."
        yield must(key, "empty without lm-eval", ", ".join(names), fix)
    if names and include_path is not None and not Path(include_path).expanduser().is_dir():
        yield problem(
            "evaluate.tasks.include_path",
            f"must be a folder with task YAML files, but is '{include_path}' instead, where there is no folder. "
            "Check the path.",
        )


def _package() -> str:
    """Return the folder of lm-eval; empty where it is not installed."""
    found = importlib.util.find_spec("lm_eval")
    return (found.submodule_search_locations or [""])[0] if found is not None else ""


def find_names(names: Sequence[str], folders: Sequence[Path]) -> tuple[dict[str, Path], list[str]]:
    """Return a file that speaks of each name, and the names of which no file does.

    A file that is called like the name is looked at first. One that merely uses the name is enough: what is refused
    here is certainly unknown.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        paths = sorted(folder.rglob("*.yaml"))
        left = [name for name in names if name not in found]
        for path in [path for path in paths if path.stem in left]:
            if _speaks_of(path.stem, _text(path)):
                found.setdefault(path.stem, path)
        left = [name for name in left if name not in found]
        for path in paths if left else ():
            text = _text(path)
            found |= {name: path for name in left if name not in found and _speaks_of(name, text)}
            if all(name in found for name in left):
                break
    return found, [name for name in names if name not in found]


def _speaks_of(name: str, text: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text) is not None


def _all_names(folders: Sequence[Path]) -> list[str]:
    return [
        name for folder in folders for path in folder.rglob("*.yaml") for name in _NAMED.findall(_text(path))
    ]


def _missing_data(key: str, files: Mapping[str, Path], variables: Mapping[str, str]) -> Iterator[Problem]:
    """Yield a problem for each task whose dataset is on the hub and not in the cache, where the hub is not asked."""
    home = Path(variables.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    hub = Path(variables.get("HF_HUB_CACHE") or home / "hub").expanduser()
    read = Path(variables.get("HF_DATASETS_CACHE") or home / "datasets").expanduser()
    for name, path in files.items():
        dataset = _dataset(path, name)
        if dataset is None or dataset in LOCAL or Path(dataset).exists():
            continue
        kept = (hub / f"datasets--{dataset.replace('/', '--')}", read / dataset.replace("/", "___").lower())
        if not any(folder.exists() for folder in kept):
            yield must(
                key,
                "tasks whose data is there, as the job does not ask the hub (HF_HUB_OFFLINE)",
                f"{name} of {dataset}",
                f"Download it first: python -c \"import datasets; datasets.load_dataset('{dataset}')\".",
            )


def _dataset(path: Path, name: str) -> str | None:
    """Return the dataset that a task's file names, itself or in a file it includes; None where neither does."""
    text = _text(path)
    if not re.search(rf"^task:\s*[\"']?{re.escape(name)}[\"']?\s*$", text, re.MULTILINE):
        return None
    for _ in range(4):  # files that include files
        dataset = _value(text, "dataset_path")
        included = _value(text, "include")
        if dataset is not None or included is None:
            return dataset
        path = path.parent / included
        text = _text(path)
    return None


def _value(text: str, key: str) -> str | None:
    found = re.search(rf"^{key}:\s*[\"']?([^\s\"'#]+)", text, re.MULTILINE)
    return None if found is None else found.group(1)


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""
