"""Every key of a configuration that is a place on disk, and how it becomes absolute.

A run is frozen with whole paths, so that whatever goes on with it reads the same files from any working directory.
Links are left as they are: what is behind them is compared by content.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trainer.config.nearby import looks_local
from trainer.config.schema import RunConfig

ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*(://|::[a-zA-Z][a-zA-Z0-9+.-]*://)")
"""How an address begins: a protocol, or one in front of another (simplecache::s3://...)."""


def absolute(path: str, here: Path) -> str:
    """Return a path from the root; an empty one stays."""
    return str(here / os.path.expanduser(path)) if path else path


def is_address(path: str) -> bool:
    """Say whether a path is an address, such as s3://bucket/folder, and no place on this machine's disks."""
    return ADDRESS.match(path) is not None


def pattern(path: str, here: Path) -> str:
    """Return a file, folder or glob from the root; special characters of the working directory stand for themselves.

    An address stays.
    """
    if is_address(path):
        return path
    whole, given = absolute(path, here), os.path.expanduser(path)
    if os.path.isabs(given) or os.path.exists(whole) or not glob.has_magic(path):
        return whole
    return str(Path(glob.escape(str(here))) / given)


def name_or_place(name: str, here: Path) -> str:
    """Return a place from the root where it is one: it exists, or looks like a path; a name of the hub stays."""
    is_place = looks_local(name) or (name and os.path.exists(here / name))
    return absolute(name, here) if is_place else name


def program(word: str, here: Path) -> str:
    """Return a program from the root unless it is looked for on the PATH."""
    return absolute(word, here) if "/" in word or word.startswith("~") else word


def image(address: str, here: Path) -> str:
    """Return an image from the root unless it is an address."""
    is_file = address.startswith(("/", ".", "~")) or address.endswith((".sif", ".sqsh"))
    return absolute(address, here) if is_file else address


PLACES: dict[str, Callable[[str, Path], str]] = {
    "run_dir": absolute,
    "model.path": name_or_place,
    "model.tokenizer": name_or_place,
    "model.chat_template": absolute,
    "objective.distill.teacher": name_or_place,
    "tune.start": absolute,
    "data.sources.NAME.path": pattern,
    "data.sources.NAME.dataset": name_or_place,
    "data.sources.NAME.tokenizer": name_or_place,
    "data.sources.NAME.curate.against": absolute,
    "data.cache_dir": absolute,
    "replay.generate.output_dir": absolute,
    "replay.generate.prompt_file": pattern,
    "evaluate.tasks.include_path": absolute,
    "evaluate.during.samples.file": absolute,
    "evaluate.asked.refusals.harmful": absolute,
    "evaluate.asked.refusals.benign": absolute,
    "evaluate.asked.refusals.phrases": absolute,
    "evaluate.scores.file": absolute,
    "evaluate.scores.output_dir": absolute,
    "evaluate.scores.generator": absolute,
    "export.output_dir": absolute,
    "export.llama_cpp": absolute,
    "export.adapters": absolute,
    "plan.output": absolute,
    "plan.data_output": absolute,
    "evaluate.probe_dir": absolute,
    "synthetic.input": pattern,
    "synthetic.output": absolute,
    "synthetic.raft.corpus": pattern,
    "synthetic.sample.reward_model": absolute,
    "synthetic.judge.principles": absolute,
    "synthetic.revise.principles": absolute,
    "log.tensorboard.dir": absolute,
    "log.trackio.dir": absolute,
    "cluster.hostfile": absolute,
    "cluster.python": program,
    "cluster.container.image": image,
}
"""Keys that are places on this side, one or a list of them. Those on nodes or inside an image are written whole."""


def places_in(config: RunConfig) -> Iterator[tuple[str, str, str]]:
    """Yield (key of PLACES, key as typed, path) of every place that a configuration names, in the order of PLACES."""
    for key in PLACES:
        *sections, name = key.split(".")
        for typed, owner in _owners(config, sections):
            value = getattr(owner, name)
            for one in value if isinstance(value, list) else [value]:
                if one:
                    yield key, f"{typed}{name}", one


def make_absolute(config: RunConfig, here: Path) -> None:
    """Replace every place of a configuration, in place, by one from the root."""
    for key, whole in PLACES.items():
        *sections, name = key.split(".")
        for _, owner in _owners(config, sections):
            value = getattr(owner, name)
            if isinstance(value, list):
                setattr(owner, name, [whole(one, here) for one in value])
            elif value is not None:
                setattr(owner, name, whole(value, here))
    config.zero.extra = _extra(config.zero.extra, here)


def _owners(section: Any, names: list[str], typed: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the sections that a dotted key leads to, each with its key as typed; NAME is every entry of a mapping."""
    if not names:
        yield typed, section
        return
    inner = section if names[0] == "NAME" else {names[0]: getattr(section, names[0])}
    for name, one in inner.items():
        if dataclasses.is_dataclass(one) or isinstance(one, dict):
            yield from _owners(one, names[1:], f"{typed}{name}.")


def _extra(value: Any, here: Path, key: str = "") -> Any:
    """Return DeepSpeed's own keys with those that end with `path` from the root, such as nvme_path."""
    if isinstance(value, dict):
        return {name: _extra(inner, here, str(name)) for name, inner in value.items()}
    return absolute(value, here) if isinstance(value, str) and key.endswith("path") else value
