"""`palimpsest export adapters=[runs/a,runs/b]`: several LoRA adapters of one base, written as one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from trainer.checkpoint.named import find_checkpoint
from trainer.config.check import check_config
from trainer.config.schema import RunConfig
from trainer.errors import CheckpointError, ConfigError, Exit, ModelError
from trainer.export.gguf import find_converter, write_gguf
from trainer.runtime.say import say

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.export.base_card import BaseCard
    from trainer.export.combine import Adapter
    from trainer.model.base_files import BaseFiles


def combine_adapters(config: RunConfig) -> int:
    """Write the weighted combination as an adapter, or merged into the base; return the exit code."""
    from trainer.command.card import base_of, push_export
    from trainer.command.exported import note_export
    from trainer.config.snapshot import config_path
    from trainer.export.combine import combined
    from trainer.export.push import open_repository
    from trainer.export.weights import export_dtype
    from trainer.model.base_files import open_base
    from trainer.model.digest import base_digest
    from trainer.model.resolve import resolve_model

    check_config(config, only=("export",))
    export, console = config.export, Console()
    weights = export.weights or [1 / len(export.adapters)] * len(export.adapters)
    source = resolve_model(config.model, Path(config.data.cache_dir))
    converter = find_converter(export, not export.merge)
    repository = open_repository(export)
    base = base_of(config, source)
    files = open_base(source, config.model)
    read = [_read(Path(name).expanduser(), export.checkpoint, files) for name in export.adapters]
    adapters = [(adapter, digest) for adapter, digest, _ in read]
    now = base_digest(config.model, config.tune.quantise, source, config.data.cache_dir)
    _check_bases(adapters, export.adapters, source, now)
    output_dir = Path(export.output_dir or "").expanduser().absolute()
    dtype = export_dtype(export.dtype, "fp32" if any(is_wide for _, _, is_wide in read) else "bf16")
    said = " + ".join(f"{weight:g} x {name}" for weight, name in zip(weights, export.adapters, strict=True))
    say(console, f"Combining ({export.combination.value}) {said} in {dtype}")
    tensors, described = combined(
        [adapter for adapter, _ in adapters], weights, export.combination, export.density
    )
    described.base_model_name_or_path = source
    made = _write(config, tensors, described, files, output_dir, dtype, console)
    say(console, f"{made} in {output_dir}")
    _describe(
        config, base, output_dir, f"It is {said} ({export.combination.value}), in {dtype}.", dtype, console
    )
    for run_dir in map(Path, export.adapters):
        if config_path(run_dir.expanduser()).exists():
            note_export(run_dir.expanduser(), output_dir, console)
    if repository is not None:
        push_export(
            repository, output_dir, [source, config.data.cache_dir], "several adapters as one", console
        )
    write_gguf(converter, output_dir, export.gguf, None if export.merge else source, console)
    return Exit.done


def _write(
    config: RunConfig,
    tensors: dict[str, Tensor],
    described: Any,
    files: BaseFiles,
    output_dir: Path,
    dtype: str,
    console: Console,
) -> str:
    """Write the combination alone, or the base with it, and say which."""
    from trainer.command.write_export import under_file_names
    from trainer.export.folder import write_model_files, write_tokenizer
    from trainer.export.merge import for_whole, with_base, write_adapter
    from trainer.export.weights import DTYPES, export_weights, publish_export

    export, source = config.export, files.source
    if export.merge:
        merged = with_base(tensors.items(), files, described)
        stream, is_whole = under_file_names(merged, export.text_only, files, console)
        count = export_weights(
            stream,
            output_dir,
            dtype,
            int(export.max_shard_gb * 1e9),
            partial(write_model_files, source, config.model, dtype, partial(say, console), is_whole=is_whole),
            exact=files.exact,
        )
        return f"The base with all of them added in: {count} tensors"

    def fill(folder: Path) -> None:
        trained, adapter = for_whole(tensors.items(), described, files)
        write_adapter(trained, adapter, folder, DTYPES[dtype])
        write_tokenizer(source, config.model, folder)

    publish_export(output_dir, fill)
    return f"An adapter of rank {described.r} on {len(described.target_modules)} modules"


def _describe(
    config: RunConfig, base: BaseCard, folder: Path, what: str, dtype: str, console: Console
) -> None:
    """Load the folder if it is to be verified, and add its model card and the list of what it holds."""
    import torch

    from trainer.command.card import seal_export, write_combined_card
    from trainer.export.folder import require_loads

    proof = "It was written and read back, and never loaded."
    if config.export.verify:
        require_loads(folder, torch.arange(16), dtype, config.model.trust_remote_code)
        proof = "It was written and read back; it loads and gives finite logits."
    write_combined_card(base, folder, what, proof, config.export.combination.value)
    seal_export(folder, "", base, config.export.hub is not None, console)


def _read(folder: Path, which: str, base: BaseFiles) -> tuple[Adapter, str | None, bool]:
    """Return the adapter of a run directory or an exported folder, its base's digest if known, and if it is float32."""
    from trainer.checkpoint.manifest import read_manifest
    from trainer.config.snapshot import config_path
    from trainer.config.store import load_config
    from trainer.engine.consolidate import stream_parameters
    from trainer.export.combine import Adapter, read_folder
    from trainer.export.merge import read_adapter
    from trainer.model.tune.pissa import as_plain_lora

    if not config_path(folder).exists():
        adapter = read_folder(folder)
        adapter.tensors = {base.text_name(name) or name: tensor for name, tensor in adapter.tensors.items()}
        return adapter, None, any(tensor.itemsize > 2 for tensor in adapter.tensors.values())
    config = read_adapter(folder)
    if config is None:
        raise ModelError(
            f"`export.adapters` must name runs that trained an adapter, but {folder} trained whole weights instead. "
            "See export.alpha for mixing those with their base."
        )
    checkpoint = find_checkpoint(folder, which)
    stream, plain = as_plain_lora(stream_parameters(checkpoint), config, folder)
    digest = read_manifest(checkpoint).facts.get("base")
    is_wide = load_config(config_path(folder), []).zero.dtype == "fp32"
    return Adapter(str(folder), dict(stream), plain), None if digest is None else str(digest), is_wide


def _check_bases(adapters: list[tuple[Adapter, str | None]], names: list[str], source: str, now: str) -> None:
    """Refuse adapters of different bases.

    Args:
        now: Digest of the base as it is.
    Raises:
        CheckpointError: Two runs with different digests of their base, or a base that has changed since.
        ConfigError: An exported folder names another base.
    """
    known: list[tuple[str, str]] = []
    for name, (_, digest) in zip(names, adapters, strict=True):
        if digest is None:
            continue
        known.append((name, digest))
        if digest != known[0][1]:
            raise CheckpointError(
                f"`export.adapters` must be of one base model, but {name} was trained on another ({digest[:12]}) than "
                f"{known[0][0]} ({known[0][1][:12]}). Combine adapters of the same base."
            )
    if known and known[0][1] != now:
        raise CheckpointError(
            f"The base {source} must be the one that {known[0][0]} was trained on ({known[0][1][:12]}), but is another "
            f"({now[:12]}) instead. Bring back its weights."
        )
    for name, (adapter, known_digest) in zip(names, adapters, strict=True):
        base = adapter.config.base_model_name_or_path
        if known_digest is None and base and Path(base).name != Path(source).name:
            raise ConfigError(
                f"`export.adapters` must be of one base model, but {name} says {base} and the run that was named first "
                f"{source}. Combine adapters of the same base."
            )
