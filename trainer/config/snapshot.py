"""Freeze a configuration in its run directory, and refuse a directory that holds another one.

Writes RUN_DIR/config.yaml and RUN_DIR/provenance.json; everything else about runs lives elsewhere.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import itertools
import json
import os
import platform
import shlex
import subprocess
import uuid
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from trainer.config.address import shown_address
from trainer.config.apart import refuse_run_dir
from trainer.config.data import PackingMode
from trainer.config.fence import check_publish
from trainer.config.longer import LENGTH, begin_from
from trainer.config.may_differ import MADE_ANEW, MAY_DIFFER, is_of_review
from trainer.config.record import WORDS
from trainer.config.reference import EnvText
from trainer.config.schema import RunConfig
from trainer.config.store import load_config, sealed, to_plain, to_yaml
from trainer.errors import ConfigError

FITTED = ("zero.stage", "model.checkpoint_layers", "zero.dtype")
"""Keys that command/fitting.py fills in before a run is frozen; OPEN afterwards means what the run began with."""
OPEN = (None, "auto")
"""Values of FITTED that are to be filled in."""
FILLED_IN = (*FITTED, "model.chat_template_date", "data.packing", "data.share_prompts")
"""Keys that are filled in before a run is frozen."""

MOST_SHOWN = 6
"""Differences of two configurations that a sentence names."""

SWEEP_RECORD = "sweep.json"
"""File that makes a directory one of a sweep; its runs are in folders below."""

_PACKAGES = ("torch", "deepspeed", "transformers", "peft", "datasets", "flash-attn", "liger-kernel")


def config_path(run_dir: Path) -> Path:
    """Return the place of the frozen configuration."""
    return run_dir / "config.yaml"


def freeze(config: RunConfig, run_dir: Path) -> Path:
    """Write the frozen configuration, or check it against the one that is there.

    What is fitted and open stays as the run began.

    Raises:
        ConfigError: The directory holds a configuration that would train something else.
    """
    refuse_another(config, run_dir)
    path = config_path(run_dir)
    config = dated(as_begun(packed_as_begun(config, run_dir), run_dir), run_dir)
    try:
        make_run_dir(run_dir)
        write_atomic(path, sealed(to_yaml(config)), is_private=holds_values(config))
    except OSError as error:
        raise ConfigError(
            f"`run_dir` must be a folder you can write to, but {run_dir} is not: {error.strerror}. Set run_dir."
        ) from error
    return path


def make_run_dir(run_dir: Path) -> None:
    """Make a run directory for its owner and group alone; one that is there keeps the mode that it was given."""
    run_dir.mkdir(mode=0o750, parents=True, exist_ok=True)


def holds_values(config: RunConfig) -> bool:
    """Tell whether a configuration has values in it that others must not read: of variables, or in an address."""
    given = [one for one in config.cluster.environment.values() if not isinstance(one, EnvText)]
    return bool(given) or any(shown_address(text) != text for text in _texts(to_plain(config)))


def _texts(section: Any) -> Iterator[str]:
    """Yield every text of nested mappings and lists."""
    if isinstance(section, str):
        yield section
    elif isinstance(section, dict | list):
        for one in section.values() if isinstance(section, dict) else section:
            yield from _texts(one)


def as_begun(config: RunConfig, run_dir: Path) -> RunConfig:
    """Return the configuration with what was fitted when the run began where it is open; unchanged for a new run."""
    if not any(value in OPEN for value in fitted_values(config)):
        return config
    old = _begun_with(run_dir)
    if old is None:
        return config
    pairs = zip(fitted_values(old), fitted_values(config), strict=True)
    return with_fitted(config, *(before if now in OPEN else now for before, now in pairs))


def fitted_values(config: RunConfig) -> tuple[Any, ...]:
    """Return the values of FITTED."""
    return config.zero.stage, config.model.checkpoint_layers, config.zero.dtype


def with_fitted(config: RunConfig, stage: int | None, layers: int | None, dtype: str) -> RunConfig:
    """Return the configuration with these values of FITTED."""
    return dataclasses.replace(
        config,
        zero=dataclasses.replace(config.zero, stage=stage, dtype=dtype),
        model=dataclasses.replace(config.model, checkpoint_layers=layers),
    )


def packed_as_begun(config: RunConfig, run_dir: Path) -> RunConfig:
    """Return the configuration with `data.packing` as the run began where it is auto; unchanged for a new run."""
    if config.data.packing is not PackingMode.auto:
        return config
    old = _begun_with(run_dir)
    return config if old is None else with_packing_mode(config, old.data.packing)


def with_packing_mode(config: RunConfig, mode: PackingMode) -> RunConfig:
    """Return the configuration with this `data.packing`."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, packing=mode))


def shared_as_begun(config: RunConfig, run_dir: Path) -> RunConfig:
    """Return the configuration with `data.share_prompts` as the run began where it is open; unchanged for a new run."""
    old = _begun_with(run_dir) if config.data.share_prompts is None else None
    return config if old is None else with_share_prompts(config, old.data.share_prompts)


def with_share_prompts(config: RunConfig, shared: bool | None) -> RunConfig:
    """Return the configuration with this `data.share_prompts`."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, share_prompts=shared))


def dated(config: RunConfig, run_dir: Path) -> RunConfig:
    """Return the configuration with the day that chat templates are told: as the run began, else today."""
    if config.model.chat_template_date is not None:
        return config
    old = _begun_with(run_dir)
    day = (old and old.model.chat_template_date) or datetime.date.today().isoformat()
    return dataclasses.replace(config, model=dataclasses.replace(config.model, chat_template_date=day))


def refuse_another(config: RunConfig, run_dir: Path) -> None:
    """Raise when the directory holds what the configuration cannot go on from.

    Raises:
        ConfigError: It holds a run of another configuration, a sweep or what is of no run, or is read.
    """
    if (run_dir / SWEEP_RECORD).exists():
        raise ConfigError(
            f"`run_dir` must be the folder of one run, but {run_dir} holds a sweep instead. Give another run_dir, or "
            "-m with the sweep's own words to go on with it."
        )
    old = _begun_with(run_dir)
    if old is None:
        refuse_run_dir(config, run_dir)
    different = [] if old is None else differences(old, config)
    if different:
        given = tuple(
            f"{word.lstrip('+~').split('=')[0]}: " for word in shlex.split(os.environ.get(WORDS, ""))
        )
        different.sort(key=lambda line: not line.startswith(given))  # what was typed first, then by name
        more = len(different) - MOST_SHOWN
        shown = "; ".join(different[:MOST_SHOWN]) + (f"; and {more} more" if more > 0 else "")
        is_longer = all(line.startswith(LENGTH) for line in different)
        longer = (
            f" To train on what it has trained, give the new run its own directory and {begin_from(config)}."
        )
        raise ConfigError(
            f"{run_dir} holds a run of another configuration ({shown}). Give the new run a directory of its own, such "
            f"as {_free_word(config, run_dir)}, or give the same values to go on with the one that is there."
            f"{longer if is_longer else ''}"
        )


def _free_word(config: RunConfig, run_dir: Path) -> str:
    """Return a word that gives a run a directory that is not there yet: run_dir where that was given, else the name."""
    whole = (
        run_dir.parent if (run_dir.parent / SWEEP_RECORD).exists() else run_dir
    )  # of a point, that of its sweep
    other = free_folder(whole)
    is_given = any(word.startswith("run_dir=") for word in shlex.split(os.environ.get(WORDS, "")))
    is_named = not is_given and whole == Path(RunConfig.run_dir.replace("${name}", config.name)).absolute()
    return f"name={other.name}" if is_named else f"run_dir={other}"


def free_folder(folder: Path) -> Path:
    """Return the folder of a like name that is not there yet."""
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    return next(one for one in numbered if not one.exists())


def _begun_with(run_dir: Path) -> RunConfig | None:
    """Return the frozen configuration once anything was trained; a start that failed leaves the directory free."""
    path = config_path(run_dir)
    has_begun = any((run_dir / name).exists() for name in ("metrics.jsonl", "checkpoints"))
    if not (has_begun and path.exists()):
        return None
    old = load_config(path)
    # Frozen before there was a choice: packed, and two documents a pair.
    if old.data.packing is PackingMode.auto:
        old = with_packing_mode(old, PackingMode.packed)
    return with_share_prompts(old, bool(old.data.share_prompts))


def write_atomic(path: Path, content: str | bytes, is_private: bool = False) -> None:
    """Write a small file whole or not at all: stage, fsync, rename.

    Args:
        is_private: For its owner alone; else as the umask says.
    Raises:
        OSError: It cannot be written.
        CheckpointError: It is in a run directory that another run has taken over.
    """
    staged = path.with_name(
        f".{path.name}.{uuid.uuid4().hex[:12]}.tmp"
    )  # not by process: other nodes write here too
    try:
        mode = 0o600 if is_private else 0o666
        with open(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        check_publish(path)
        staged.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # the operating system names only what cannot be opened
        raise
    finally:
        staged.unlink(missing_ok=True)


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """List keys that shape the training and differ, as `key: old -> new`; a source more or less is one line."""
    before, after = _flat(to_plain(old)), _flat(to_plain(new))
    sources = {
        f"data.sources.{name}": "removed" if name in old.data.sources else "added"
        for name in old.data.sources.keys() ^ new.data.sources.keys()
    }
    inner = tuple(f"{key}." for key in sources)
    keys = sorted(key for key in set(before) | set(after) if not key.startswith(inner))
    found = [f"{key}: {what}" for key, what in sources.items()]
    return sorted(found) + [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in keys
        if before.get(key) != after.get(key)
        and not key.startswith(MAY_DIFFER)
        and not is_of_review(key)
        # Open is what the run began with.
        and not (key in FILLED_IN and after.get(key) in OPEN)
    ]


def config_digest(config: RunConfig) -> str:
    """Return a digest of every key that shapes the training."""
    flat = {
        k: v
        for k, v in _flat(to_plain(config)).items()
        if not k.startswith(MAY_DIFFER + config.objective.unread) and not is_of_review(k)
    }
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()


def asked_digest(config: RunConfig) -> str:
    """Return a digest of every key that says what a training has to make, in whatever way its work is spread."""
    ways = (*(key for key in MAY_DIFFER if key not in MADE_ANEW), *FILLED_IN, *config.objective.unread)
    flat = {
        k: v for k, v in _flat(to_plain(config)).items() if not k.startswith(ways) and not is_of_review(k)
    }
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()


def write_provenance(run_dir: Path, **facts: Any) -> None:
    """Write provenance.json: code, versions and the digests handed in."""
    record = {
        "python": platform.python_version(),
        "packages": {name: installed(name) for name in _PACKAGES},
        "palimpsest": installed("palimpsest-trainer"),
        "git": _git_sha(),
        "host": platform.node(),
        "words": os.environ.get(WORDS),
        **facts,
    }
    write_atomic(run_dir / "provenance.json", json.dumps(record, indent=2, sort_keys=True) + "\n")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def installed(package: str) -> str | None:
    """Return the version of a package without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_sha() -> str | None:
    # An image has no git history; docker/Dockerfile says which commit it holds.
    if revision := os.environ.get("PALIMPSEST_REVISION"):
        return revision
    here = Path(__file__).resolve().parents[2]
    # Installed from a wheel: a repository that happens to be above is somebody else's.
    if not (here / ".git").exists():
        return None
    try:
        result = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
