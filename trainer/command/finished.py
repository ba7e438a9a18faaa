"""What is said of a run that is finished when it is started again, and whether anything is left to be made."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.checkpoint.layout import find_checkpoints
from trainer.checkpoint.manifest import read_manifest
from trainer.checkpoint.verify import find_damage
from trainer.config.longer import begin_from
from trainer.config.may_differ import MADE_ANEW
from trainer.config.paths import is_address
from trainer.config.schema import RunConfig
from trainer.config.snapshot import asked_digest, free_folder
from trainer.errors import TrainerError
from trainer.evaluate.record import BASE_FILE
from trainer.evaluate.record import FILE_NAME as COMPARISON
from trainer.metrics.jsonl import has_numbers, read_events
from trainer.report.build import FILE_NAME as REPORT

LEDGER = "ledger.jsonl"
MOST_READ_BYTES = 1 << 30
"""Of a checkpoint whose files are compared with their digests, which takes a second; of a larger one their sizes."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A run of which no step is left."""

    sentence: str
    """What it has, and how to go on."""
    is_done: bool
    """Whether all that this configuration asks for is there: a start would only prove and compare it anew."""


def find_finished(config: RunConfig) -> Finished | None:
    """Return what there is of a run that is finished; None where something is left to train.

    Reads the ledger, the newest checkpoint and when inputs were changed; loads no torch. A start without
    `checkpoint.resume` trains anew.
    """
    run_dir = Path(config.run_dir)
    ledger = read_events(run_dir / LEDGER)
    events = [one for one in ledger if one["event"] in ("started", "stopped")]
    newest = next(iter(find_checkpoints(run_dir)), None)
    goes_on = config.checkpoint.resume and config.checkpoint.enabled
    if not (goes_on and newest and events and events[-1].get("reason") == "finished"):
        return None
    asked = [int(one["num_steps"]) for one in events if has_numbers(one, "num_steps")]
    steps = int(events[-1]["step"])
    num_steps = asked[-1] if asked else steps
    why = _why_again(config, ledger[-1])
    if steps != num_steps or not _is_sound(newest, steps):
        why, rest = (
            "",
            f"It goes on from what is sound: the checkpoint of step {steps} is not as it was written",
        )
    elif why is None:
        rest = "All that was asked for is there, and nothing was started"
    else:
        rest = (
            f"No step is left: only the comparison with the base and the report are made again, since {why}"
        )
    sentence = f"{run_dir} is finished: {steps} of {num_steps} steps are trained, and {newest.name} is saved. {rest}. "
    return Finished(sentence + _ways_on(config), why is None)


def _ways_on(config: RunConfig) -> str:
    """Return how a finished run is used, and trained longer."""
    run_dir = Path(config.run_dir)
    place, other = shlex.quote(str(run_dir)), shlex.quote(str(free_folder(run_dir)))
    return (
        f"To use it: palimpsest export run_dir={place}. To train longer, give a run of its own (run_dir={other}) more "
        f"steps, or {begin_from(config)}."
    )


def _why_again(config: RunConfig, end: dict[str, Any]) -> str | None:
    """Return why a start would not find all that is asked for; None where it would.

    Args:
        end: The last event of the ledger.
    """
    run_dir = Path(config.run_dir)
    if end["event"] != "concluded":
        return "it ended before they were"
    if end.get("asked") != asked_digest(config):
        return f"the configuration asks for others than before (a key of {', '.join(one[:-1] for one in MADE_ANEW)})"
    if not (run_dir / REPORT).is_file():
        return f"{REPORT} is not there"
    if (run_dir / BASE_FILE).is_file() and not (run_dir / COMPARISON).is_file():
        return f"{COMPARISON} is not there"
    changed = next((path for path in _inputs(config) if _is_newer(path, float(end["time"]))), None)
    return None if changed is None else f"{changed} was changed afterwards, or is gone"


def _is_sound(folder: Path, step: int) -> bool:
    """Tell whether a checkpoint is that of a step and as it was written, a large one by the sizes of its files."""
    try:
        manifest = read_manifest(folder)
        if manifest.step != step:
            return False
        if sum(size for size, _ in manifest.files.values()) <= MOST_READ_BYTES:
            return find_damage(folder, manifest) is None
        return all((folder / name).stat().st_size == size for name, (size, _) in manifest.files.items())
    except (OSError, TrainerError):
        return False


def _inputs(config: RunConfig) -> Iterator[Path]:
    """Yield the files on this machine that a run reads; a path that leads to none is yielded as it is."""
    from trainer.data.rows.files import list_files

    for name, source in config.data.sources.items():
        if source.path is None or is_address(source.path):
            continue
        try:
            yield from (file for file in list_files(name, source).files if isinstance(file, Path))
        except TrainerError:
            yield Path(source.path)
    folder = Path(config.model.path or "").expanduser()
    if config.model.path and folder.is_dir():
        yield from (file for file in folder.iterdir() if file.is_file())


def _is_newer(path: Path, time: float) -> bool:
    """Tell whether a file was changed after a time, or is not there."""
    try:
        return path.stat().st_mtime > time
    except OSError:
        return True
