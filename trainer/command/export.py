"""The export of a checkpoint: written, read back, and its logits compared with those of what was trained."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from trainer.checkpoint.named import find_checkpoint
from trainer.command.before_ranks import check_whole_export
from trainer.command.write_export import in_dtype, write_export, writes_adapter
from trainer.config.check import check_config
from trainer.config.schema import RunConfig
from trainer.config.tune import Quantise, TuneMethod
from trainer.errors import Exit, SelfCheckError
from trainer.export.gguf import find_converter, write_gguf
from trainer.run.identity import refuse_others
from trainer.runtime.publish import staged
from trainer.runtime.say import say

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.evaluate.proofs.fingerprint import Fingerprint
    from trainer.export.base_card import BaseCard
    from trainer.model.base_files import BaseFiles

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
    if config.export.interpolate is None:
        check_whole_export(config)
    if config.export.adapters:
        from trainer.command.combine import combine_adapters

        return combine_adapters(config)
    if config.export.interpolate is not None:
        from trainer.command.interpolate import interpolate

        return interpolate(config)
    from trainer.checkpoint.named import find_checkpoint
    from trainer.command.export import export_model

    if config.asks_gate_to_export:
        from trainer.command.evaluate import refuse_failing

        refuse_failing(config, find_checkpoint(Path(config.run_dir), config.export.checkpoint).name)
    return export_model(config)


def export_model(config: RunConfig) -> int:
    """Write a checkpoint as a Hugging Face folder and compare its logits with the trained ones."""
    from trainer.command.card import base_of, is_verified, made_from, push_export
    from trainer.command.exported import note_export, what_stands
    from trainer.export.push import open_repository
    from trainer.export.weights import export_dtype
    from trainer.model.base_files import open_base
    from trainer.model.resolve import resolve_model

    check_config(config, only=("export", "model.head"))
    run_dir = Path(config.run_dir)
    checkpoint = find_checkpoint(run_dir, config.export.checkpoint)
    output_dir = Path(config.export.output_dir or run_dir / "export").expanduser().absolute()
    source = resolve_model(config.model, Path(config.data.cache_dir))
    refuse_others(config, source, reads_data=False)
    is_adapter = writes_adapter(config)
    converter = find_converter(config.export, is_adapter)
    repository = open_repository(config.export)
    base = base_of(config, source)
    how = ", as it was trained" if config.export.dtype == "auto" else ""
    config = in_dtype(config, export_dtype(config.export.dtype, config.zero.dtype))
    console = Console()
    origin = made_from(config, checkpoint, base)
    try:
        if repository is not None and is_verified(output_dir, origin):
            say(console, f"{output_dir} holds {checkpoint.name}, exported and verified before.")
        else:
            _export_verified(
                config, checkpoint, open_base(source, config.model), base, output_dir, origin, how, console
            )
        note_export(run_dir, output_dir, console)
        if repository is not None:
            places = [source, str(run_dir), str(Path(config.data.cache_dir))]
            push_export(repository, output_dir, places, f"{checkpoint.name} of {config.name}", console)
        write_gguf(converter, output_dir, config.export.gguf, source if is_adapter else None, console)
    except KeyboardInterrupt:
        print(f"Interrupted. {what_stands(output_dir, origin)}", file=sys.stderr)
        return Exit.interrupted
    return Exit.done


def _export_verified(
    config: RunConfig,
    checkpoint: Path,
    files: BaseFiles,
    base: BaseCard,
    output_dir: Path,
    origin: str,
    how: str,
    console: Console,
) -> None:
    """Write the folder, compare it with what was trained, and add its model card and the list of what was verified."""
    from trainer.command.card import seal_export, write_card
    from trainer.export.rounding import Rounding
    from trainer.export.weights import DTYPES

    say(console, f"Exporting {checkpoint.name} to {output_dir} in {config.export.dtype}{how}")
    if config.tune.quantise is not Quantise.none:
        is_whole = config.export.merge or config.export.alpha != 1
        say(console, PACKED_WHOLE if is_whole else PACKED_ADAPTER)
    rounding = Rounding(files, DTYPES[config.export.dtype])
    # A model that trained in bf16 whole was rounded so in every step.
    is_rounded_more = config.zero.dtype == "fp32" or config.tune.method is not TuneMethod.full
    count = write_export(
        config, checkpoint, files, output_dir, console, rounding if is_rounded_more else None
    )
    proof = _verify(config, checkpoint, files, output_dir, count, console)
    if rounding.num_lost:
        say(
            console,
            f"Of the weights that training moved, {100 * rounding.lost_share:.0f} % are the base's again when rounded "
            f"to {config.export.dtype}; export.dtype=float32 keeps them.",
        )
    write_card(config, checkpoint, base, output_dir, _what(config, checkpoint), proof)
    seal_export(output_dir, origin, base, config.export.hub is not None, console)


def _what(config: RunConfig, checkpoint: Path) -> str:
    """Say in a sentence what of a run was exported."""
    if config.export.alpha != 1:
        count = config.export.average
        tuned = checkpoint.name if count == 1 else f"mean of {count} checkpoints up to {checkpoint.name}"
        share = f"{config.export.alpha:g} x ({tuned} - base)"
        return f"Its weights are base + {share}, in {config.export.dtype}."
    if config.export.average > 1:
        return (
            f"Its weights are the mean of {config.export.average} checkpoints of the run up to {checkpoint.name}, in "
            f"{config.export.dtype}."
        )
    merged = ", with the adapter added into the base" if config.export.merge else ""
    return f"It is {checkpoint.name} of the run{merged}, in {config.export.dtype}."


def _verify(
    config: RunConfig, checkpoint: Path, files: BaseFiles, output_dir: Path, count: int, console: Console
) -> str:
    """Compare the folder's logits with the trained ones, where it is to be the trained model; return what was proved.

    The files were read back: they hold the trained weights, rounded. Where that is more than the trained model was
    rounded itself, its logits are compared with those of the unrounded weights, and what rounding does is told.

    Raises:
        SelfCheckError: They are further apart than rounding moves them.
    """
    written = f"{count} tensors written and read back"
    if not config.export.verify:
        say(console, f"{written}; logits not compared.")
        return f"{written}; its logits were compared with nothing."
    from trainer.export.folder import how_to_load

    if (note := how_to_load(files.source, config.model)) is not None:
        say(console, note)
    if config.export.alpha != 1 or config.export.average > 1:
        _require_loads(config, checkpoint, output_dir)
        of_several = f"the mean of {config.export.average} checkpoints is another model"
        is_mixed = config.export.alpha != 1
        why = f"with alpha {config.export.alpha:g} it is another model" if is_mixed else of_several
        say(console, f"{written}; it loads, its logits are finite; they were not compared: {why}.")
        return f"{written}; it was loaded and gives finite logits, but it is not the model that was trained."
    is_narrowed = config.zero.dtype == "fp32" and config.export.dtype == "bfloat16"
    if is_narrowed:
        found = _compare_unrounded(config, checkpoint, files, output_dir)
    else:
        found = _compare(config, checkpoint, files, output_dir)
    whose = "those of the unrounded weights" if is_narrowed else "the folder's in float32"
    proof = f"{written}. {distance(found, whose)}"
    say(console, proof)
    if found.narrowing is not None:
        say(
            console,
            f"It was trained in float32: bfloat16 weights move the logits by {found.narrowing:.1e} of their spread.",
        )
    if found.packing is not None:
        say(console, f"The trained model's are {found.packing:.1e} away: its base is in NF4.")
    if not found.moved <= found.allowed:
        raise SelfCheckError(
            f"The exported folder {output_dir} must give {found.whose} within twice what rounding "
            f"does ({found.noise:.1e} of their spread), but they differ by {found.moved:.1e}. Do not use it; export "
            "another checkpoint."
        )
    return proof


def _require_loads(config: RunConfig, checkpoint: Path, folder: Path) -> None:
    from trainer.checkpoint.layout import FINGERPRINT
    from trainer.evaluate.proofs.fingerprint import read_fingerprint
    from trainer.export.folder import require_loads

    tokens_T = read_fingerprint(checkpoint / FINGERPRINT).tokens_T
    require_loads(folder, tokens_T, config.export.dtype, config.model.trust_remote_code)


@dataclass(frozen=True, slots=True)
class Compared:
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

    @property
    def allowed(self) -> float:
        """Return how far they may be: twice what rounding does, for the trained model was rounded in other places."""
        return EXPORT_FACTOR * self.noise + EXPORT_FLOOR


def distance(found: Compared, whose: str) -> str:
    """Return how far logits are apart and may be, and that the folder is verified where they are no further."""
    whose_are = f"{found.whose[:1].upper()}{found.whose[1:]} are"
    verdict = "verified, as" if found.moved <= found.allowed else "not verified:"
    return (
        f"{whose_are} {found.moved:.1e} of their spread from {whose}: {verdict} up to "
        f"{found.allowed:.1e} is allowed, twice the {found.noise:.1e} that rounding alone makes."
    )


def _compare_unrounded(config: RunConfig, checkpoint: Path, files: BaseFiles, folder: Path) -> Compared:
    """Compare the trained logits with those of the same export in float32, and that with the folder.

    The weights of the folder are those, rounded: bit by bit, as they were read back. So a difference from the trained
    model is either rounding, however much that is, or a checkpoint that does not hold what was trained.
    """
    from trainer.checkpoint.layout import FINGERPRINT
    from trainer.evaluate.proofs.fingerprint import difference, read_fingerprint

    wide = in_dtype(config, "float32")
    with staged(folder.with_name(f"{folder.name}.float32")) as beside:
        write_export(wide, checkpoint, files, beside / "model", Console(quiet=True))
        found = _compare(wide, checkpoint, files, beside / "model")
    _, narrow_KV = _folder_logits(config, folder, read_fingerprint(checkpoint / FINGERPRINT), "bfloat16")
    return dataclasses.replace(found, narrowing=difference(found.exact_KV, narrow_KV))


def _compare(config: RunConfig, checkpoint: Path, files: BaseFiles, folder: Path) -> Compared:
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
        beside_KV = _beside_whole_base(config, checkpoint, files, saved.tokens_T)[-len(exact_KV) :]
        whose = "the logits of the whole base with the adapter beside it"
        return Compared(difference(exact_KV, beside_KV), whose, noise, exact_KV, trained)
    return Compared(trained, "the trained model's logits", noise, exact_KV)


def _folder_logits(config: RunConfig, folder: Path, saved: Fingerprint, dtype: str) -> tuple[Tensor, Tensor]:
    """Return a folder's logits on the text of a fingerprint: in `dtype`, and in float32 with the same weights."""
    from trainer.export.folder import folder_logits
    from trainer.export.merge import CONFIG

    is_packed = config.tune.quantise is not Quantise.none and (folder / CONFIG).is_file()
    found = folder_logits(folder, saved.tokens_T, dtype, config.model.trust_remote_code, is_packed)
    kept = len(saved.logits_KV)
    return found[0][-kept:], found[1][-kept:]


def _beside_whole_base(config: RunConfig, checkpoint: Path, files: BaseFiles, tokens_T: Tensor) -> Tensor:
    """Return the logits of the base in full precision with a checkpoint's adapter in plain peft, float32."""
    import tempfile

    import torch

    from trainer.engine.consolidate import stream_parameters
    from trainer.export.folder import folder_logits
    from trainer.export.merge import for_whole, read_adapter, write_adapter

    with tempfile.TemporaryDirectory(prefix="palimpsest-") as folder:
        adapter = read_adapter(Path(config.run_dir))
        trained, adapter = for_whole(stream_parameters(checkpoint), adapter, files)
        write_adapter(trained, adapter, Path(folder), torch.float32)
        return folder_logits(Path(folder), tokens_T, "float32", config.model.trust_remote_code)[1]
