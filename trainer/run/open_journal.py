"""Opens the records of a run where they were left."""

from __future__ import annotations

import logging
from pathlib import Path

from trainer.checkpoint.layout import next_abandoned
from trainer.checkpoint.lineage import OF_TRACKERS, leave_behind
from trainer.checkpoint.state import TrainState
from trainer.config.many import many
from trainer.config.schema import RunConfig
from trainer.config.store import to_plain
from trainer.dist.mesh import Mesh
from trainer.metrics.console import ConsoleSink
from trainer.metrics.device import describe_device
from trainer.metrics.flops import ModelShape, peak_flops
from trainer.metrics.jsonl import JsonlSink, Ledger, read, truncate_after
from trainer.metrics.meter import Meter
from trainer.metrics.sink import Sinks
from trainer.metrics.trackers import begin, run_card
from trainer.mix.mixing import Mixing
from trainer.run.journal import Journal

_LOG = logging.getLogger(__name__)


def open_journal(
    config: RunConfig,
    run_dir: Path,
    state: TrainState,
    mixing: Mixing,
    mesh: Mesh,
    shape: ModelShape | None,
    num_adapter_params: int | None,
    goes_on: bool,
) -> Journal:
    """Open the sinks on rank 0; elsewhere a journal only counts.

    `shape` is what the MFU is worked out from, None where it is not known.
    `num_adapter_params` are the trainable weights beside a frozen base, for the MFU; None without an adapter. Unless
    the run `goes_on`, it begins anew in every tracker.

    Metrics after the resumed step are moved aside first: those steps come again.
    """
    peak = config.log.peak_tflops
    meter = Meter(
        mesh.num_ranks,
        shape,
        peak * 1e12 if peak else peak_flops(describe_device()),
        num_adapter_params,
    )
    if not mesh.is_first:
        return Journal(Sinks(), None, meter, mixing)
    metrics_path, samples_path = run_dir / "metrics.jsonl", run_dir / "samples.jsonl"
    aside = next_abandoned(run_dir)
    if not goes_on:
        leave_behind(run_dir, OF_TRACKERS, aside)
    resumed_step = state.step if state.attempts > 1 else -1
    for path in (metrics_path, samples_path):
        num_moved = truncate_after(path, resumed_step, aside / path.name)
        if num_moved:
            _LOG.warning(
                "%s of %s after step %d are now in %s.",
                many(num_moved, "line"),
                path,
                state.step,
                aside / path.name,
            )
    metrics = JsonlSink(metrics_path)
    sinks = Sinks([metrics], [ConsoleSink(mixing.num_steps, config.log.progress)])
    card = run_card(config.log, run_dir, config.name, to_plain(config) | {"device": describe_device()})
    # Read after the sink has mended its end.
    trackers = begin(config.log, card, resumed_step, read(metrics_path)) if config.log.trackers else []
    samples = JsonlSink(samples_path) if config.evaluate.during.has_samples else None
    ledger = Ledger(run_dir / "ledger.jsonl")
    return Journal(sinks, ledger, meter, mixing, trackers, samples, metrics)
