"""Places that a command fills are kept apart from those that it reads: a run, an export, a cache is no source or model.

What a place is, its real path says: a link, `..` and a relative path lead to the same one.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from trainer.config.paths import is_address, places_in
from trainer.config.schema import RunConfig
from trainer.errors import ConfigError

ADAPTERS = "export.adapters"
"""Names runs, whose directories also take exports."""
READ = (
    *(
        "model.path",
        "model.tokenizer",
        "evaluate.tasks.include_path",
        "tune.start",
        ADAPTERS,
        "objective.distill.teacher",
    ),
    *(f"data.sources.NAME.{name}" for name in ("path", "dataset", "tokenizer")),
)
"""Keys of PLACES that are read and may be folders."""
OF_RUNS = frozenset(
    (
        *(
            "attempts.jsonl",
            "base_evaluation.npz",
            "base_tasks.json",
            "base_tasks_during.json",
            "checkpoints",
            "export",
        ),
        *("exported", "forgotten_documents.json", "job.sh", "ledger.jsonl", "logs"),
        *(
            "layer_drift.json",
            "metrics.jsonl",
            "probe_evaluation.npz",
            "provenance.json",
            "report.html",
            "rounds",
            "samples.jsonl",
            "start_adapter",
            "tensorboard",
            "trackers",
        ),
    )
)
"""What a start may leave in a run directory without the frozen configuration, and what may be brought to go on from."""
OF_CACHES = (
    *("addresses", "corpora", "datasets", "digests", "evaluations", "generated", "locks", "models"),
    *("prepared", "references", "stores"),
)
_FROZEN = b"# sha256: "
"""How the last line of a frozen configuration begins."""


def inputs_of(config: RunConfig) -> Iterator[tuple[str, Path]]:
    """Yield (key, real path) of every file and folder here that a configuration reads; of a pattern, what it finds."""
    for key, typed, path in places_in(config):
        if key not in READ or is_address(path):
            continue
        whole = os.path.expanduser(path)
        found = [whole] if os.path.exists(whole) else sorted(glob.glob(whole, recursive=True))
        yield from ((typed, _real(one)) for one in found)


def why_not_apart(place: str | Path, inputs: Iterable[tuple[str, Path]]) -> str | None:
    """Return in words which input a place to be filled is, or lies in; None for one that is apart from all."""
    real = _real(place)
    for key, path in inputs:
        if real == path:
            return f"is `{key}`"
        if path in real.parents and path.is_dir() and key != ADAPTERS:
            return f"is in `{key}` ({path})"
    return None


def why_no_run(config: RunConfig, run_dir: Path) -> str | None:
    """Return the sentence about a folder that a run must not be written into: it is read, or holds something else."""
    if _is_frozen(run_dir / "config.yaml"):
        return None
    why = why_not_apart(run_dir, inputs_of(config))
    if why is None and (other := _not_of_a_run(run_dir)) is not None:
        why = f"holds {other}, which no run wrote"
    if why is None:
        return None
    return (
        f"`run_dir` must be a new folder or that of a run, but {run_dir} {why} instead. Set another, such as "
        f"run_dir=runs/{config.name}."
    )


def refuse_run_dir(config: RunConfig, run_dir: Path) -> None:
    """Raise where a run, or a sweep, would be written into what it reads or into a folder that holds something else.

    Raises:
        ConfigError: Names what is there.
    """
    why = why_no_run(config, run_dir)
    if why is not None:
        raise ConfigError(why)


def why_no_cache(config: RunConfig) -> str | None:
    """Return in words which input the cache would be mixed with; None where it is apart, or was used before."""
    cache = _real(config.data.cache_dir)
    if any((cache / name).is_dir() for name in OF_CACHES):
        return None
    inputs = list(inputs_of(config))
    holds = next((f"holds `{key}` ({path.name})" for key, path in inputs if path.parent == cache), None)
    return why_not_apart(cache, inputs) or holds


def _not_of_a_run(folder: Path) -> str | None:
    """Return what is in a folder that no start left there; None where it is new or empty."""
    if not folder.is_dir():
        return None
    names = sorted(one.name for one in folder.iterdir())
    return next((name for name in names if name not in OF_RUNS and not name.startswith(".")), None)


def _is_frozen(file: Path) -> bool:
    try:
        return _FROZEN in file.read_bytes()
    except OSError:
        return False


def _real(path: str | Path) -> Path:
    return Path(os.path.realpath(os.path.expanduser(path)))
