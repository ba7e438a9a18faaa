"""Chooses the files of one split in a folder that names splits: by its README's `configs`, or by the files' names.

A downloaded dataset of the hub holds its test data beside its training data. Standard library and yaml only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import PurePath
from typing import Any, TypeVar

from trainer.config.many import many
from trainer.errors import DataError

P = TypeVar("P", bound=PurePath)

WORDS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
}
"""Words in names that stand for a split, as the library `datasets` takes them."""
README = "README.md"
FRONT_MATTER = re.compile(r"\A\ufeff?---\s*\n(.*?)\n---\s*$", re.DOTALL | re.MULTILINE)
HUB_SHARD = re.compile(r"(\w+)-\d{5}-of-\d{5}")
"""How the hub names shards; the split is all of the name before, such as train_sft."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the configuration asks of a folder: `key` is that of its source."""

    key: str
    split: str
    subset: str | None
    path: str


def choose_split(folder: P, files: list[P], asked: Asked, readme: str | None) -> tuple[list[P], list[str]]:
    """Return the files of the split that is asked for, and lines that say what was chosen and left out.

    Args:
        readme: Text of the folder's README, if it has one.
    Raises:
        DataError: If there is no such split, or it is not clear which split some files belong to.
    """
    configs = _read_configs(readme)
    if configs:
        config, wanted = _choose_config(configs, asked)
        by_split = _files_by_config(folder, files, config, asked)
        source = "its README" if len(configs) == 1 else f"its README (config '{wanted}' of {len(configs)})"
    else:
        if asked.subset is not None:
            raise DataError(
                f"`{asked.key}.subset` must be null for a folder whose README lists no configs, but is "
                f"'{asked.subset}' instead. Leave it out, or name its folder in {asked.key}.path."
            )
        by_split = _files_by_name(folder, files, asked)
        source = "the names of its files"
    if not by_split:
        if asked.split != "train":
            raise DataError(
                f"`{asked.key}.split` must name a split of the folder, but is '{asked.split}', and neither "
                f"a README nor names tell splits in '{asked.path}' instead. Name the files in {asked.key}.path."
            )
        return files, []
    if by_split.get(asked.split) == []:
        raise DataError(
            f"`{asked.key}.path` must hold the files of the split '{asked.split}' that {source} lists, but "
            f"'{asked.path}' has none that is read instead. Download them, or name files in {asked.key}.path."
        )
    if asked.split not in by_split:
        raise DataError(
            f"`{asked.key}.split` must be one of [{', '.join(sorted(by_split))}], the splits of '{asked.path}' by "
            f"{source}, but is '{asked.split}' instead. Set {asked.key}.split, or name files in {asked.key}.path."
        )
    chosen = by_split[asked.split]
    left = len(files) - len(chosen)
    lines = [f"split '{asked.split}' by {source}: {many(len(chosen), 'file')}"]
    if left:
        others = ", ".join(sorted(name for name in by_split if name != asked.split)) or "none"
        lines = [f"{lines[0]}; {many(left, 'file')} of the folder not read (other splits: {others})"]
    return chosen, lines


# ---- by README


def _read_configs(readme: str | None) -> list[dict[str, Any]]:
    found = None if readme is None else FRONT_MATTER.search(readme)
    if found is None:
        return []
    import yaml

    from trainer.config.yaml_text import OF_A_CARD, plain

    try:
        header = plain(found.group(1), OF_A_CARD)
    except yaml.YAMLError:
        return []
    configs = header.get("configs") if isinstance(header, dict) else None
    return [c for c in configs if isinstance(c, dict)] if isinstance(configs, list) else []


def _choose_config(configs: list[dict[str, Any]], asked: Asked) -> tuple[dict[str, Any], str]:
    names = [str(config.get("config_name", "default")) for config in configs]
    wanted = asked.subset
    if wanted is None:
        defaults = [n for n, c in zip(names, configs, strict=True) if c.get("default") or n == "default"]
        wanted = names[0] if len(names) == 1 else defaults[0] if len(defaults) == 1 else None
    if wanted not in names:
        raise DataError(
            f"`{asked.key}.subset` must be one of [{', '.join(names)}], the configs in the README of "
            f"'{asked.path}', but is {asked.subset or 'null'} instead. Set {asked.key}.subset."
        )
    return configs[names.index(wanted)], wanted


def _files_by_config(folder: P, files: list[P], config: dict[str, Any], asked: Asked) -> dict[str, list[P]]:
    below = {str(file.relative_to(folder)): file for file in files}
    if "data_files" not in config:
        inner = str(config.get("data_dir", "")).strip("./")
        return _files_by_name(folder, [f for n, f in below.items() if n.startswith(inner)], asked)
    by_split: dict[str, list[P]] = {}
    for split, pattern in _patterns(config["data_files"]):
        found = by_split.setdefault(split, [])
        found += [file for name, file in below.items() if _matches(name, pattern) and file not in found]
    return {split: sorted(found) for split, found in by_split.items()}


def _patterns(data_files: Any) -> list[tuple[str, str]]:
    """Return (split, pattern) of a README's `data_files`: a path, paths, {split: paths} or a list of {split, path}."""
    if isinstance(data_files, str):
        return [("train", data_files)]
    if isinstance(data_files, dict):
        return [(str(split), p) for split, paths in data_files.items() for p in _as_list(paths)]
    found = []
    for entry in _as_list(data_files):
        if isinstance(entry, dict):
            found += [(str(entry.get("split", "train")), path) for path in _as_list(entry.get("path"))]
        else:
            found.append(("train", str(entry)))
    return found


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _matches(name: str, pattern: Any) -> bool:
    pattern = str(pattern).removeprefix("./")
    if "**" in pattern:
        return fnmatch(name, pattern.replace("**/", "*").replace("**", "*"))
    return name.count("/") == pattern.count("/") and fnmatch(name, pattern)


# ---- by name


def _files_by_name(folder: P, files: list[P], asked: Asked) -> dict[str, list[P]]:
    """Return the files by split; none if no name tells one. A txt file is a document, whatever it is called."""
    by_split: dict[str, list[P]] = {}
    unnamed: list[P] = []
    for file in files:
        split = split_of(file.relative_to(folder))
        (unnamed if split is None else by_split.setdefault(split, [])).append(file)
    if by_split and unnamed:
        raise DataError(
            f"`{asked.key}.path` must hold files that all tell their split or that all tell none, but "
            f"'{asked.path}' has {many(len(unnamed), 'file')} such as '{unnamed[0].name}' beside the splits "
            f"[{', '.join(sorted(by_split))}] instead. Name the files, for example {asked.key}.path='FOLDER/*.jsonl'."
        )
    return by_split


def split_of(path: PurePath) -> str | None:
    """Return the split that the name of a file or of its folders tells, or None."""
    if ".txt" in path.suffixes:
        return None
    shard = HUB_SHARD.match(path.name)
    if shard and _words(shard.group(1)):
        return shard.group(1)
    for part in reversed(path.parts):
        found = _words(part)
        if len(found) == 1:
            return found.pop()
    return None


def _words(name: str) -> set[str]:
    return {WORDS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in WORDS}
