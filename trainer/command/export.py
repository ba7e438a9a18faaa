"""The export of a checkpoint: written, read back, and its logits compared with those of what was trained."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from trainer.checkpoint.named import find_checkpoint
from trainer.config.check import check_config
from trainer.config.schema import RunConfig
from trainer.config.tune import Quantise, TuneMethod
from trainer.errors import Exit, SelfCheckError
from trainer.export.gguf import find_converter, write_gguf
from trainer.run.identity import refuse_other_model
from trainer.runtime.say import say

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.evaluate.proofs.fingerprint import Fingerprint
    from trainer.export.rounding import Rounding

EXPORT_FACTOR = 2.0
"""How many times the rounding noise of the model an export may be away from the trained one."""
EXPORT_FLOOR = 1e-5
"""Allowed where both sides compute in float32."""
PACKED_ADAPTER = (
    "The adapter learnt beside a base in NF4. On the same it answers as trained: BitsAndBytesConfig(load_in_4bit=True, "
    "bnb_4bit_quant_type='nf4', bnb_4bit_use_double_quant=True). export.merge=true adds it into the whole base instead."
)
PACKED_WHOLE = (
    "The adapter is added into the base in full precision, which it saw in NF4 while it learnt: the model answers like "
    "the trained one but for what 4 bits round."
)


def export(config: RunConfig) -> int:
    """Write a checkpoint, several adapters as one, or what lies between the base and a checkpoint."""
    if config.export.adapters:
        from trainer.command.combine import combine_adapters

        return combine_adapters(config)
    if config.export.interpolate is not None:
        from trainer.command.interpolate import interpolate

        return interpolate(config)
    from trainer.checkpoint.named import find_checkpoint
    from trainer.command.export import export_model

    if config.gate.has_rules and not config.export.despite_gate:
        from trainer.command.evaluate import refuse_failing

        refuse_failing(config, find_checkpoint(Path(config.run_dir), config.export.checkpoint).name)
    return export_model(config)


def export_model(config: RunConfig) -> int:
    """Write a checkpoint as a Hugging Face folder and compare its logits with the trained ones."""
    from trainer.export.rounding import Rounding
    from trainer.export.weights import DTYPES, export_dtype
    from trainer.model.resolve import resolve_model

    check_config(config, only=("export",))
    run_dir = Path(config.run_dir)
    checkpoint = find_checkpoint(run_dir, config.export.checkpoint)
    output_dir = Path(config.export.output_dir or run_dir / "export").expanduser().absolute()
    source = resolve_model(config.model, Path(config.data.cache_dir))
    refuse_other_model(config, source)
    is_adapter = _writes_adapter(config)
    converter = find_converter(config.export, is_adapter)
    how = ", as it was trained" if config.export.dtype == "auto" else ""
    config = _in_dtype(config, export_dtype(config.export.dtype, config.zero.dtype))
    console = Console()
    say(console, f"Exporting {checkpoint.name} to {output_dir} in {config.export.dtype}{how}")
    if config.tune.quantise is not Quantise.none:
        is_whole = config.export.merge or config.export.alpha != 1
        say(console, PACKED_WHOLE if is_whole else PACKED_ADAPTER)
    rounding = Rounding(source, DTYPES[config.export.dtype])
    # A model that trained in bf16 whole was rounded so in every step.
    is_rounded_more = config.zero.dtype == "fp32" or config.tune.method is not TuneMethod.full
    count = _write_export(
        config, checkpoint, source, output_dir, console, rounding if is_rounded_more else None
    )
    _verify(config, checkpoint, source, output_dir, count, console)
    if rounding.num_lost:
        say(
            console,
            f"Of the weights that training moved, {100 * rounding.lost_share:.0f} % are the base's again when rounded "
            f"to {config.export.dtype}; export.dtype=float32 keeps them.",
        )
    write_gguf(converter, output_dir, config.export.gguf, source if is_adapter else None, console)
    return Exit.done


def _in_dtype(config: RunConfig, dtype: str) -> RunConfig:
    return dataclasses.replace(config, export=dataclasses.replace(config.export, dtype=dtype))


def _verify(
    config: RunConfig, checkpoint: Path, source: str, output_dir: Path, count: int, console: Console
) -> None:
    """Compare the folder's logits with the trained ones, where it is to be the trained model.

    The files were read back: they hold the trained weights, rounded. Where that is more than the trained model was
    rounded itself, its logits are compared with those of the unrounded weights, and what rounding does is told.

    Raises:
        SelfCheckError: They are further apart than rounding moves them.
    """
    if not config.export.verify or config.export.alpha != 1:
        why = "" if config.export.alpha == 1 else f": with alpha {config.export.alpha:g} it is another model"
        say(console, f"{count} tensors written and read back; logits not compared{why}.")
        return
    is_narrowed = config.zero.dtype == "fp32" and config.export.dtype == "bfloat16"
    if is_narrowed:
        found = _compare_unrounded(config, checkpoint, source, output_dir)
    else:
        found = _compare(config, checkpoint, output_dir)
    whose = "those of the unrounded weights" if is_narrowed else "the folder's in float32"
    say(
        console,
        f"{count} tensors written and read back. {found.whose.capitalize()} are {found.moved:.1e} of their spread from "
        f"{whose}; rounding alone makes {found.noise:.1e}.",
    )
    if found.narrowing is not None:
        say(
            console,
            f"It was trained in float32: bfloat16 weights move the logits by {found.narrowing:.1e} of their spread.",
        )
    if found.packing is not None:
        say(console, f"The trained model's are {found.packing:.1e} away: its base is in NF4.")
    if not found.moved <= EXPORT_FACTOR * found.noise + EXPORT_FLOOR:
        raise SelfCheckError(
            f"The exported folder {output_dir} must give {found.whose} within twice what rounding "
            f"does ({found.noise:.1e} of their spread), but they differ by {found.moved:.1e}. Do not use it; export "
            "another checkpoint."
        )


def _writes_adapter(config: RunConfig) -> bool:
    """Tell whether the export is an adapter alone rather than a whole model."""
    from trainer.export.merge import CONFIG

    is_adapter = (Path(config.run_dir) / CONFIG).is_file()
    return is_adapter and not config.export.merge and config.export.alpha == 1


def _write_export(
    config: RunConfig,
    checkpoint: Path,
    source: str,
    output_dir: Path,
    console: Console,
    rounding: Rounding | None = None,
) -> int:
    """Write the adapter alone, or the whole model, and return the number of tensors.

    Args:
        rounding: Told what is written where that is rounded more than the trained model was.
    """
    from rich.progress import track

    from trainer.engine.consolidate import stream_parameters
    from trainer.export.blend import blended
    from trainer.export.folder import write_model_files, write_tokenizer
    from trainer.export.merge import read_adapter, write_adapter
    from trainer.export.weights import DTYPES, export_weights, publish_export
    from trainer.model.tune.pissa import as_plain_lora

    options = config.export
    adapter = read_adapter(Path(config.run_dir))
    if _writes_adapter(config):
        counts: list[int] = []
        trained, adapter = as_plain_lora(stream_parameters(checkpoint), adapter, Path(config.run_dir))

        def fill(folder: Path) -> None:
            counts.append(write_adapter(trained, adapter, folder, DTYPES[options.dtype]))
            write_tokenizer(source, config.model, folder)

        publish_export(output_dir, fill)
        return counts[0]
    stream = tuned_tensors(config, checkpoint, source)
    if options.alpha != 1:
        stream = blended(stream, source, options.alpha)
    if rounding is not None:
        stream = rounding.watch(stream)

    return export_weights(
        track(stream, description="tensors", console=console),
        output_dir,
        options.dtype,
        int(options.max_shard_gb * 1e9),
        partial(write_model_files, source, config.model, options.dtype, partial(say, console)),
    )


def tuned_tensors(config: RunConfig, checkpoint: Path, source: str) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, whole tensor) of the tuned model: what trained, and the base where nothing did."""
    from trainer.engine.consolidate import stream_parameters
    from trainer.export.merge import read_adapter, with_base
    from trainer.model.tune.pissa import as_plain_lora

    stream = stream_parameters(checkpoint)
    if config.tune.method is TuneMethod.full:
        return stream
    run_dir = Path(config.run_dir)
    trained, adapter = as_plain_lora(stream, read_adapter(run_dir), run_dir)
    return with_base(trained, source, adapter)


@dataclass(frozen=True, slots=True)
class _Compared:
    """How far logits are from those of an exported folder in float32, as shares of their spread."""

    moved: float
    whose: str
    """Whose logits `moved` is about."""
    noise: float
    """The folder's own in bf16."""
    exact_KV: Tensor
    """The folder's in float32."""
    packing: float | None = None
    """The trained model's, where what was exported is another one: its base was in 4 bits."""
    narrowing: float | None = None
    """Those of the narrower weights, where `exact_KV` is of unrounded ones."""


def _compare_unrounded(config: RunConfig, checkpoint: Path, source: str, folder: Path) -> _Compared:
    """Compare the trained logits with those of the same export in float32, and that with the folder.

    The weights of the folder are those, rounded: bit by bit, as they were read back. So a difference from the trained
    model is either rounding, however much that is, or a checkpoint that does not hold what was trained.
    """
    from trainer.checkpoint.layout import FINGERPRINT
    from trainer.evaluate.proofs.fingerprint import difference, read_fingerprint

    wide, beside = _in_dtype(config, "float32"), folder.with_name(f".{folder.name}.float32")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        _write_export(wide, checkpoint, source, beside, Console(quiet=True))
        found = _compare(wide, checkpoint, beside)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    _, narrow_KV = _folder_logits(config, folder, read_fingerprint(checkpoint / FINGERPRINT), "bfloat16")
    return dataclasses.replace(found, narrowing=difference(found.exact_KV, narrow_KV))


def _compare(config: RunConfig, checkpoint: Path, folder: Path) -> _Compared:
    """Compare the logits of a folder with those of what was trained.

    What was trained on a base in 4 bits and merged into the whole one is not the trained model any more: there it is
    the whole base with the adapter beside it.

    A fixed limit would be wrong for both: bf16 through 30 layers moves logits by more than through two, and
    training may have used other kernels than a reader of the folder does.
    """
    from trainer.checkpoint.layout import FINGERPRINT
    from trainer.evaluate.proofs.fingerprint import difference, read_fingerprint
    from trainer.export.merge import CONFIG

    saved = read_fingerprint(checkpoint / FINGERPRINT)
    is_packed = config.tune.quantise is not Quantise.none
    is_adapter = (folder / CONFIG).is_file()
    trained_in_bf16 = config.zero.dtype == "bf16" and (is_adapter or not is_packed)
    is_bf16 = trained_in_bf16 or config.export.dtype != "float32"
    rounded_KV, exact_KV = _folder_logits(config, folder, saved, "bfloat16" if is_bf16 else "float32")
    noise, trained = difference(exact_KV, rounded_KV), difference(exact_KV, saved.logits_KV)
    if is_packed and not is_adapter:
        beside_KV = _beside_whole_base(config, checkpoint, saved.tokens_T)[-len(exact_KV) :]
        whose = "the logits of the whole base with the adapter beside it"
        return _Compared(difference(exact_KV, beside_KV), whose, noise, exact_KV, trained)
    return _Compared(trained, "the trained model's logits", noise, exact_KV)


def _folder_logits(config: RunConfig, folder: Path, saved: Fingerprint, dtype: str) -> tuple[Tensor, Tensor]:
    """Return a folder's logits on the text of a fingerprint: in `dtype`, and in float32 with the same weights."""
    from trainer.export.folder import folder_logits
    from trainer.export.merge import CONFIG

    is_packed = config.tune.quantise is not Quantise.none and (folder / CONFIG).is_file()
    found = folder_logits(folder, saved.tokens_T, dtype, config.model.trust_remote_code, is_packed)
    kept = len(saved.logits_KV)
    return found[0][-kept:], found[1][-kept:]


def _beside_whole_base(config: RunConfig, checkpoint: Path, tokens_T: Tensor) -> Tensor:
    """Return the logits of the base in full precision with a checkpoint's adapter in plain peft, float32."""
    import tempfile

    import torch

    from trainer.engine.consolidate import stream_parameters
    from trainer.export.folder import folder_logits
    from trainer.export.merge import read_adapter, write_adapter

    with tempfile.TemporaryDirectory(prefix="palimpsest-") as folder:
        adapter = read_adapter(Path(config.run_dir))
        write_adapter(stream_parameters(checkpoint), adapter, Path(folder), torch.float32)
        return folder_logits(Path(folder), tokens_T, "float32", config.model.trust_remote_code)[1]
