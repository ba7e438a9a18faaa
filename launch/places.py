"""Places on disk that a run reads: are they there, do all nodes see them, and which folders must an image see."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from trainer.config.check_cluster import is_below, local_problem
from trainer.config.cluster import ClusterConfig, ContainerRuntime
from trainer.config.model import ModelKind
from trainer.config.nearby import near_place
from trainer.config.paths import is_address, places_in
from trainer.config.rule import Problem, problem
from trainer.config.schema import RunConfig

MOST_LOOKED_AT = 10_000
"""Files of a folder that are looked at for links: submit answers at once."""
NOT_READ = ("run_dir", "data.cache_dir", "replay.generate.", "export.", "plan.", "cluster.", "synthetic.")
"""Places that training does not read, or that are looked at for themselves."""
HUB_FOLDERS = ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE")


@dataclass(frozen=True, slots=True)
class ReadPlace:
    """What a key of the configuration names, from the root."""

    key: str
    path: str
    is_own: bool = False
    """Made by the run itself, so that it need not be there."""
    may_be_local: bool = False
    """Of each node on purpose."""


def read_places(config: RunConfig) -> Iterator[ReadPlace]:
    """Yield every place on disk that training reads or writes beside its run directory; names of a hub are none."""
    has_files = config.model.kind in (ModelKind.pretrained, ModelKind.random)
    for key, typed, path in places_in(config):
        if key.startswith(NOT_READ) or not path.startswith("/") or is_address(path):
            continue
        if key != "model.path" or has_files:
            yield ReadPlace(typed, path, is_own=key.startswith("log."))
    yield from _of_deepspeed(config.zero.extra, "zero.extra")


def _of_deepspeed(value: object, key: str) -> Iterator[ReadPlace]:
    """Yield DeepSpeed's own paths, such as nvme_path."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _of_deepspeed(inner, f"{key}.{name}")
    elif isinstance(value, str) and key.endswith("path"):
        yield ReadPlace(key, value, is_own=True, may_be_local=True)


def missing_places(config: RunConfig) -> Iterator[ReadPlace]:
    """Yield everything that is read and is not on this machine."""
    for place in read_places(config):
        if not place.is_own and not _found(_outside(config.cluster, place.path)):
            yield place


def missing_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield a problem for each of those."""
    for place in missing_places(config):
        near = near_place(place.path)
        question = "" if near is None else f" Did you mean {near}?"
        yield problem(
            place.key,
            f"must be on this machine when a run is submitted, but there is nothing at {place.path}.{question} "
            "Check the path, or make it first; a dry run goes without it.",
        )


def local_problems(config: RunConfig, environment: Mapping[str, str]) -> Iterator[Problem]:
    """Yield a problem for everything that only one node would see.

    Args:
        environment: Variables that a job inherits. They may name caches of the hub, which the first node fills.
    """
    cluster = config.cluster
    for place in (*read_places(config), ReadPlace("data.cache_dir", config.data.cache_dir)):
        if not place.may_be_local:
            yield from local_problem(cluster, place.key, _outside(cluster, place.path))
    hub = _hub_places(config, environment) if cluster.num_nodes > 1 else {}
    if len(hub) == len(HUB_FOLDERS):
        del hub[HUB_FOLDERS[0]]  # nothing lies in the home itself
    for name, folder in hub.items():
        if not any(name in line for line in cluster.setup):
            choose = f"Export a shared folder, or set cluster.environment.{name}=FOLDER"
            yield from local_problem(cluster, name, _outside(cluster, str(folder)), choose)


def hub_folders(config: RunConfig, environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Return the caches of the hub that a run reads, the home first; none where it names nothing of the hub."""
    return tuple(dict.fromkeys(_hub_places(config, environment).values()))


def _hub_places(config: RunConfig, environment: Mapping[str, str]) -> dict[str, Path]:
    """Return those caches by the variable that names them."""
    if not any(_names_of_hub(config)):
        return {}
    variables = {**environment, **config.cluster.environment}
    home = variables.get("HF_HOME") or f"{variables.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    given = {name: variables[name] for name in HUB_FOLDERS[1:] if variables.get(name)}
    found = {HUB_FOLDERS[0]: home, **given}
    return {name: Path(os.path.abspath(os.path.expanduser(one))) for name, one in found.items()}


def _names_of_hub(config: RunConfig) -> Iterator[str]:
    model, evaluate = config.model, config.evaluate
    yield (
        model.path if model.kind in (ModelKind.pretrained, ModelKind.random) and model.path[:1] != "/" else ""
    )
    named = [
        model.tokenizer,
        *(one for s in config.data.sources.values() for one in (s.dataset, s.tokenizer)),
    ]
    yield from (name for name in named if name and not name.startswith("/"))
    yield from (*evaluate.tasks.names, *evaluate.during.tasks)


def mounted(config: RunConfig, own: Iterable[Path]) -> dict[str, str]:
    """Return folder -> key for all that an image must see beside the run's own folders and those that are listed."""
    cluster = config.cluster
    if cluster.container.runtime is ContainerRuntime.none:
        return {}
    covered = [*map(str, own), *([cluster.scratch] if cluster.scratch else []), *_inside(cluster)]
    found: dict[str, str] = {}
    for place in read_places(config):
        if any(is_below(place.path, inside) for host, inside in _pairs(cluster) if host != inside):
            continue  # a path inside the image
        for folder in _folders(place):
            found.setdefault(folder, place.key)
    kept: dict[str, str] = {}
    for folder in sorted(found, key=len):  # the shorter covers the longer
        if not any(is_below(folder, one) for one in (*covered, *kept)):
            kept[folder] = found[folder]
    return kept


def _folders(place: ReadPlace) -> Iterator[str]:
    """Yield the folder that holds a place, and those that its links lead to."""
    path = Path(os.path.normpath(place.path))
    if place.is_own or path.is_dir():
        yield str(path)
    else:
        # A file that is not here may be on the cluster. The root is not mounted: then the file alone is.
        steady = path
        while glob.has_magic(str(steady)) and not steady.exists():
            steady = steady.parent
        is_folder = steady.is_dir() or (steady == path and not path.exists() and not path.suffix)
        folder = steady if is_folder else steady.parent
        yield str(folder if folder != Path("/") else path)
    for file in _files(path):
        if file.is_symlink() or path.is_symlink():
            real = file.resolve()
            yield str(real if real.is_dir() else real.parent)


def _files(path: Path) -> Iterator[Path]:
    """Yield a place and what is in it."""
    if path.exists():
        yield path
        yield from islice(path.rglob("*"), MOST_LOOKED_AT) if path.is_dir() else ()
    else:
        yield from map(Path, islice(glob.iglob(str(path), recursive=True), MOST_LOOKED_AT))


def _found(path: str) -> bool:
    # Megatron names two files by what comes before the dot.
    return os.path.exists(path) or os.path.exists(f"{path}.idx") or any(glob.iglob(path, recursive=True))


def _pairs(cluster: ClusterConfig) -> Iterator[tuple[str, str]]:
    """Yield the listed mounts as host and inside."""
    if cluster.container.runtime is not ContainerRuntime.none:
        for mount in cluster.container.mounts:
            host, _, rest = mount.partition(":")
            yield host, rest.partition(":")[0] or host


def _inside(cluster: ClusterConfig) -> Iterator[str]:
    yield from (inside for _, inside in _pairs(cluster))


def _outside(cluster: ClusterConfig, path: str) -> str:
    """Return where a path of the image is on this side."""
    for host, inside in _pairs(cluster):
        if host != inside and is_below(path, inside):
            return host.rstrip("/") + path[len(inside.rstrip("/")) :]
    return path
