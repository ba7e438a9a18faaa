"""What an export writes of a checkpoint: the adapter alone, or the whole model as a stream of tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from trainer.config.schema import RunConfig
from trainer.config.tune import TuneMethod
from trainer.runtime.say import say

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.export.rounding import Rounding
    from trainer.model.base_files import BaseFiles


def in_dtype(config: RunConfig, dtype: str) -> RunConfig:
    """Return the configuration with an `export.dtype`."""
    return dataclasses.replace(config, export=dataclasses.replace(config.export, dtype=dtype))


def writes_adapter(config: RunConfig) -> bool:
    """Tell whether the export is an adapter alone rather than a whole model."""
    from trainer.export.merge import CONFIG

    is_adapter = (Path(config.run_dir) / CONFIG).is_file()
    return is_adapter and not config.export.merge and config.export.alpha == 1


def write_export(
    config: RunConfig,
    checkpoint: Path,
    base: BaseFiles,
    output_dir: Path,
    console: Console,
    rounding: Rounding | None = None,
) -> int:
    """Write the adapter alone, or the whole model, and return the number of tensors.

    Args:
        base: Under whose files' names a whole model is written.
        rounding: Told what is written where that is rounded more than the trained model was.
    """
    from rich.progress import track

    from trainer.engine.consolidate import stream_parameters
    from trainer.export.blend import blended
    from trainer.export.folder import say_stops, write_model_files, write_tokenizer
    from trainer.export.merge import for_whole, read_adapter, write_adapter
    from trainer.export.weights import DTYPES, export_weights, publish_export
    from trainer.model.tune.pissa import as_plain_lora

    options, source = config.export, base.source
    adapter = read_adapter(Path(config.run_dir))
    if writes_adapter(config):
        counts: list[int] = []
        trained, adapter = as_plain_lora(stream_parameters(checkpoint), adapter, Path(config.run_dir))
        trained, adapter = for_whole(trained, adapter, base)

        def fill(folder: Path) -> None:
            counts.append(write_adapter(trained, adapter, folder, DTYPES[options.dtype]))
            write_tokenizer(source, config.model, folder)
            say_stops(source, config.model, partial(say, console), folder)

        publish_export(output_dir, fill)
        return counts[0]
    stream = tuned_tensors(config, checkpoint, base)
    if options.alpha != 1:
        stream = blended(stream, base, options.alpha)
    if rounding is not None:
        stream = rounding.watch(stream)
    stream, is_whole = under_file_names(stream, options.text_only, base, console)
    return export_weights(
        track(stream, description="tensors", console=console),
        output_dir,
        options.dtype,
        int(options.max_shard_gb * 1e9),
        partial(
            write_model_files, source, config.model, options.dtype, partial(say, console), is_whole=is_whole
        ),
        exact=base.exact,
    )


def under_file_names(
    stream: Iterator[tuple[str, Tensor]], text_only: bool, base: BaseFiles, console: Console
) -> tuple[Iterator[tuple[str, Tensor]], bool]:
    """Return a model's tensors as the base's files name them, and whether they are more than a language model's."""
    if text_only and base.is_multimodal:
        say(console, "The language model alone is written, under the names of transformers.")
        return stream, False
    for sentence in base.sentences():
        say(console, sentence)
    if text_only:
        say(console, "The base is a language model alone: export.text_only changes nothing.")
    return base.as_files(stream), base.is_multimodal


def tuned_tensors(config: RunConfig, checkpoint: Path, base: BaseFiles) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, whole tensor) of the tuned model: what trained, and the base where nothing did.

    With `export.average` the mean of that over several checkpoints, each with its adapter added in.
    """
    from trainer.checkpoint.several import find_last
    from trainer.export.average import averaged

    streams = [_tuned(config, one, base) for one in find_last(checkpoint, config.export.average)]
    return averaged(streams) if len(streams) > 1 else streams[0]


def _tuned(config: RunConfig, checkpoint: Path, base: BaseFiles) -> Iterator[tuple[str, Tensor]]:
    from trainer.engine.consolidate import stream_parameters
    from trainer.export.merge import read_adapter, with_base
    from trainer.model.tune.pissa import as_plain_lora

    stream = stream_parameters(checkpoint)
    if config.tune.method is TuneMethod.full:
        return stream
    run_dir = Path(config.run_dir)
    trained, adapter = as_plain_lora(stream, read_adapter(run_dir), run_dir)
    return with_base(trained, base, adapter)
