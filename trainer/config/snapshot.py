"""Freeze a configuration in its run directory, and refuse a directory that holds another one.

Writes RUN_DIR/config.yaml and RUN_DIR/provenance.json; everything else about runs lives elsewhere.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from trainer.config.schema import RunConfig
from trainer.config.store import load_config, to_plain, to_yaml
from trainer.errors import ConfigError

MAY_DIFFER = (
    *("log.", "cluster.", "export.", "checkpoint.", "evaluate.", "gate.", "plan.", "sweep.", "run_dir"),
    *("data.cache_dir", "data.num_workers", "model.verify_weights", "train.isolation_probe"),
    "replay.generate.",
)
"""Key prefixes that do not change what is trained; a resumed run may change them."""

FITTED = ("zero.stage", "model.checkpoint_layers")
"""Keys that trainer/fitting.py fills in before a run is frozen; null afterwards means what the run began with."""

SWEEP_RECORD = "sweep.json"
"""File that makes a directory one of a sweep; its runs are in folders below."""

_PACKAGES = ("torch", "deepspeed", "transformers", "peft", "datasets", "flash-attn", "liger-kernel")


def config_path(run_dir: Path) -> Path:
    """Return the place of the frozen configuration."""
    return run_dir / "config.yaml"


def freeze(config: RunConfig, run_dir: Path) -> Path:
    """Write the frozen configuration, or check it against the one that is there.

    What is fitted and null stays as the run began.

    Raises:
        ConfigError: The directory holds a configuration that would train something else.
    """
    refuse_another(config, run_dir)
    path = config_path(run_dir)
    if path.exists() and has_begun(run_dir):
        config = _as_begun(load_config(path), config)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_atomic(path, to_yaml(config))
    except OSError as error:
        raise ConfigError(
            f"`run_dir` must be a folder you can write to, but {run_dir} is not: {error.strerror}. Set run_dir."
        ) from error
    return path


def _as_begun(old: RunConfig, new: RunConfig) -> RunConfig:
    """Return the new configuration with the old one's fitted values where its own are null."""
    stage, layers = new.zero.stage, new.model.checkpoint_layers
    return dataclasses.replace(
        new,
        zero=dataclasses.replace(new.zero, stage=old.zero.stage if stage is None else stage),
        model=dataclasses.replace(
            new.model, checkpoint_layers=old.model.checkpoint_layers if layers is None else layers
        ),
    )


def refuse_another(config: RunConfig, run_dir: Path) -> None:
    """Raise when the directory holds what the configuration cannot go on from.

    Raises:
        ConfigError: It holds a run of another configuration, or a sweep.
    """
    if (run_dir / SWEEP_RECORD).exists():
        raise ConfigError(
            f"`run_dir` must be the folder of one run, but {run_dir} holds a sweep instead. Give another run_dir, or "
            "-m with the sweep's own words to go on with it."
        )
    path = config_path(run_dir)
    if not path.exists() or not has_begun(run_dir):
        return
    different = differences(load_config(path), config)
    if different:
        shown = "; ".join(different[:6]) + ("; ..." if len(different) > 6 else "")
        raise ConfigError(
            f"{run_dir} holds a run of another configuration ({shown}). Give another run_dir or "
            "name, or the same values to resume it."
        )


def has_begun(run_dir: Path) -> bool:
    """Tell whether anything was trained: a start that failed before leaves the directory free."""
    return any((run_dir / name).exists() for name in ("metrics.jsonl", "checkpoints"))


def write_atomic(path: Path, text: str) -> None:
    """Write a small file whole or not at all: stage, fsync, rename."""
    staged = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with staged.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """List keys that shape the training and differ, as `key: old -> new`."""
    before, after = _flat(to_plain(old)), _flat(to_plain(new))
    keys = sorted(set(before) | set(after))
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in keys
        if before.get(key) != after.get(key)
        and not key.startswith(MAY_DIFFER)
        # null is what the run began with.
        and not (key in FITTED and after.get(key) is None)
    ]


def config_digest(config: RunConfig) -> str:
    """Return a digest of every key that shapes the training."""
    flat = {k: v for k, v in _flat(to_plain(config)).items() if not k.startswith(MAY_DIFFER)}
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()


def write_provenance(run_dir: Path, **facts: Any) -> None:
    """Write provenance.json: code, versions and the digests handed in."""
    record = {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "palimpsest": _version("palimpsest-trainer"),
        "git": _git_sha(),
        "host": platform.node(),
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


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_sha() -> str | None:
    # An image has no git history; docker/Dockerfile says which commit it holds.
    if revision := os.environ.get("PALIMPSEST_REVISION"):
        return revision
    here = Path(__file__).resolve().parents[2]
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
