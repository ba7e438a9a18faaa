"""Drift of weights by layer at the end of a run, from the files of its newest checkpoint and of the base; rank 0."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from trainer.checkpoint.layout import find_checkpoints
from trainer.config.schema import RunConfig
from trainer.config.snapshot import write_atomic
from trainer.engine.consolidate import stream_parameters
from trainer.errors import TrainerError
from trainer.evaluate.layer_drift import FILE_NAME, DriftRecord, drift
from trainer.export.merge import read_adapter, with_base
from trainer.model.base_files import BaseFiles, open_base
from trainer.model.resolve import resolve_model
from trainer.model.tensor_files import weight_files
from trainer.model.tune.pissa import as_plain_lora

_LOG = logging.getLogger(__name__)
MOST_BYTES = 4 << 30
"""Of the base's files, up to which a run reads them and its checkpoint once more at its end: some seconds."""
MOST_EARLIER = 8
LEAST_STEPS = 50
"""Of a run; a shorter one moved little, and would end later than it took."""
BY_HAND = "palimpsest report run_dir={run_dir} evaluate.layer_drift=true"


def take_layer_drift(config: RunConfig, num_steps: int | None = None) -> None:
    """Measure the drift where it is asked for, and keep it, or why there is none, in the run directory.

    Args:
        num_steps: Steps of the run that is over; None where a person asks for it.
    """
    run_dir = Path(config.run_dir)
    asked = config.evaluate.layer_drift
    newest = next(iter(find_checkpoints(run_dir)), None)
    if (
        asked is False
        or newest is None
        or (num_steps is not None and num_steps < LEAST_STEPS and asked is None)
    ):
        return
    try:
        source = resolve_model(config.model, Path(config.data.cache_dir))
        found = _too_large(config, source, newest.name) if asked is None else None
        found = found or _with_earlier(config, source, measure_drift(config, source, newest))
    except (TrainerError, OSError) as error:  # a report without it is better than none
        found = DriftRecord(newest.name, why=str(error))
        _LOG.warning("No drift by layer: %s", error)
    write_atomic(run_dir / FILE_NAME, found.to_text())


def _with_earlier(config: RunConfig, source: str, found: DriftRecord) -> DriftRecord:
    """Add that of at most MOST_EARLIER checkpoints before, evenly spread; unasked no more than MOST_BYTES are read."""
    if found.why is not None:
        return found
    older = [path for path in find_checkpoints(Path(config.run_dir)) if path.name < found.tuned]
    most = MOST_EARLIER
    if config.evaluate.layer_drift is None:
        most = min(most, MOST_BYTES // max(_size(config, source), 1) - 1)
    older = older[:: -(-len(older) // most)] if older and most > 0 else []
    earlier = []
    for path in older:
        try:
            earlier.append(measure_drift(config, source, path))
        except (TrainerError, OSError) as error:
            _LOG.warning("No drift by layer at %s: %s", path.name, error)
    return replace(found, earlier=tuple(earlier))


def _size(config: RunConfig, source: str) -> int:
    return sum(path.stat().st_size for path in set(weight_files(source, config.model.revision).values()))


def _too_large(config: RunConfig, source: str, tuned: str) -> DriftRecord | None:
    size = _size(config, source)
    if size <= MOST_BYTES:
        return None
    command = BY_HAND.format(run_dir=config.run_dir)
    why = f"the base's files have {size / 1e9:.3g} GB, which takes a while to read. To measure it: {command}"
    return DriftRecord(tuned, why=why)


def measure_drift(config: RunConfig, source: str, checkpoint: Path) -> DriftRecord:
    """Compare a checkpoint with the files of its base.

    Raises:
        TrainerError: The base has no files here, or the checkpoint is damaged or has no place in them.
    """
    base = open_base(source, config.model)
    if not base.names:
        return DriftRecord(checkpoint.name, why="the base has no files of weights here to compare with.")
    known = set(base.names)
    with base.reader() as read:
        return drift(
            checkpoint.name,
            _tuned(config, checkpoint, base),
            lambda name: read(name) if name in known else None,
        )


def _tuned(config: RunConfig, checkpoint: Path, base: BaseFiles) -> Iterator[tuple[str, Tensor]]:
    """Yield whole tensors of a checkpoint, with an adapter added into the base."""
    stream, run_dir = stream_parameters(checkpoint), Path(config.run_dir)
    adapter = read_adapter(run_dir)
    if adapter is None:
        yield from stream
        return
    trained, adapter = as_plain_lora(stream, adapter, run_dir)
    yield from with_base(trained, base, adapter)
