"""What the commands do outside a process group: prepare, what must be there before ranks start, and export."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from trainer.config.check import check_config
from trainer.config.model import ModelConfig
from trainer.config.schema import RunConfig
from trainer.config.tune import TuneMethod
from trainer.data.types import TokenizerLike
from trainer.errors import CheckpointError, DataError, SelfCheckError

if TYPE_CHECKING:
    from torch import Tensor

EXPORT_FACTOR = 2.0
"""How many times the rounding noise of the model an export may be away from the trained one."""
EXPORT_FLOOR = 1e-5
"""Allowed where both sides compute in float32."""


def make_tokenizer(model: ModelConfig, source: str) -> TokenizerLike:
    """Load the tokenizer of a resolved model; picklable with functools.partial for worker processes."""
    from trainer.model.tokenizer import load_tokenizer

    return load_tokenizer(
        source, model.revision, model.chat_template, model.trust_remote_code, model.new_tokens
    )


def prepare_data(config: RunConfig) -> None:
    """Make the token stores of all sources and print what is in them."""
    from trainer.data.prepare import prepare
    from trainer.model.load import check_context, read_config
    from trainer.model.resolve import resolve_model, tokenizer_source

    check_config(config)
    check_generated(config)
    source = resolve_model(config.model, Path(config.data.cache_dir).expanduser())
    hf_config = read_config(source, config.model)
    check_context(hf_config, config.data.seq_len)
    build = functools.partial(make_tokenizer, config.model, tokenizer_source(config.model, source))
    tokenizer, vocab_size = build(), int(hf_config.vocab_size)
    if config.model.new_tokens:
        vocab_size = max(vocab_size, tokenizer.vocab_size)
    prepare(config.data, tokenizer, build, vocab_size, Console())


def ensure_inputs(config: RunConfig) -> TokenizerLike:
    """Make the model folder and the stores that ranks will look for, when they are missing.

    Returns the tokenizer that the stores are looked up with.
    """
    check_generated(config)
    from trainer.data.prepared import find_store
    from trainer.model.resolve import resolve_model, tokenizer_source

    source = resolve_model(config.model, Path(config.data.cache_dir).expanduser())
    tokenizer = make_tokenizer(config.model, tokenizer_source(config.model, source))
    found = [find_store(name, spec, config.data, tokenizer) for name, spec in config.data.sources.items()]
    if not all(found):
        prepare_data(config)
    return tokenizer


def check_draws(config: RunConfig, tokenizer: TokenizerLike) -> None:
    """Raise before ranks start when the run would draw what the stores do not hold."""
    from trainer.data.prepared import open_all
    from trainer.mixing import Mixing

    stores = open_all(config.data, tokenizer)
    mixing = Mixing(config, stores, config.train.global_batch_tokens // config.data.seq_len)
    if config.replay.kl.beta:
        mixing.replay_to_draw()


def check_benchmarks(config: RunConfig, command: str) -> None:
    """Load the benchmark tasks before ranks start: a missing task or file is found, and data is downloaded, here."""
    if not config.evaluate.tasks.names:
        return
    from trainer.evaluate.tasks import check_rules, load_tasks

    loaded = load_tasks(config.evaluate.tasks)
    if command == "evaluate" and config.evaluate.checkpoint != "base":
        check_rules(config.gate.tasks, loaded)


def check_generated(config: RunConfig) -> None:
    """Raise when a source is what `palimpsest replay generate` writes, but it has not run.

    Raises:
        DataError: Says which command makes the samples.
    """
    from trainer.replay.store import SAMPLES

    folder = config.replay.generate.output_dir
    if folder is None:
        return
    samples = Path(folder).expanduser() / SAMPLES
    for name, source in config.data.sources.items():
        if source.path is not None and Path(source.path).expanduser() == samples and not samples.exists():
            raise DataError(
                f"`data.sources.{name}` must have been sampled before training, but {samples} is missing. Run: "
                "palimpsest replay generate with the same overrides."
            )


def count_ranks(config: RunConfig) -> int:
    """Return the ranks of this machine: as asked, else one a GPU, else one."""
    if config.cluster.ranks_per_node:
        return config.cluster.ranks_per_node
    import torch

    return max(torch.cuda.device_count(), 1)


def export_model(config: RunConfig) -> int:
    """Write a checkpoint as a Hugging Face folder and compare its logits with the trained ones."""
    from trainer.model.resolve import resolve_model

    check_config(config, only=("export",))
    run_dir = Path(config.run_dir)
    checkpoint = find_checkpoint(run_dir, config.export.checkpoint)
    output_dir = Path(config.export.output_dir or run_dir / "export").expanduser().absolute()
    source = resolve_model(config.model, Path(config.data.cache_dir).expanduser())
    console = Console()
    console.print(f"Exporting {checkpoint.name} to {output_dir}", highlight=False, soft_wrap=True)
    count = _write_export(config, checkpoint, source, output_dir, console)
    if not config.export.verify or config.export.alpha != 1:
        why = "" if config.export.alpha == 1 else f": with alpha {config.export.alpha:g} it is another model"
        console.print(f"{count} tensors written and read back; logits not compared{why}.", highlight=False)
        return 0
    moved, noise = _compare(config, checkpoint, output_dir)
    console.print(
        f"{count} tensors written and read back. The trained model's logits are {moved:.1e} of their spread "
        f"from the folder's in float32; rounding alone makes {noise:.1e}.",
        highlight=False,
    )
    if not moved <= EXPORT_FACTOR * noise + EXPORT_FLOOR:
        raise SelfCheckError(
            f"The exported folder {output_dir} must give the trained model's logits within twice what rounding "
            f"does ({noise:.1e} of their spread), but they differ by {moved:.1e}. Do not use it; export "
            "another checkpoint."
        )
    return 0


def _write_export(
    config: RunConfig, checkpoint: Path, source: str, output_dir: Path, console: Console
) -> int:
    """Write the adapter alone, or the whole model, and return the number of tensors."""
    from rich.progress import track

    from trainer.checkpoint.export import DTYPES, export_weights, publish_folder
    from trainer.engine.consolidate import stream_parameters
    from trainer.model.blend import blended
    from trainer.model.folder import write_model_files, write_tokenizer
    from trainer.model.merge import read_adapter, write_adapter
    from trainer.model.pissa import as_plain_lora

    options = config.export
    adapter = read_adapter(Path(config.run_dir))
    if adapter is not None and not options.merge and options.alpha == 1:
        counts: list[int] = []
        trained, adapter = as_plain_lora(stream_parameters(checkpoint), adapter, Path(config.run_dir))

        def fill(folder: Path) -> None:
            counts.append(write_adapter(trained, adapter, folder, DTYPES[options.dtype]))
            write_tokenizer(source, config.model, folder)

        publish_folder(output_dir, fill)
        return counts[0]
    stream = tuned_tensors(config, checkpoint, source)
    if options.alpha != 1:
        stream = blended(stream, source, options.alpha)
    return export_weights(
        track(stream, description="tensors", console=console),
        output_dir,
        options.dtype,
        int(options.max_shard_gb * 1e9),
        lambda folder: write_model_files(source, config.model, options.dtype, folder),
    )


def tuned_tensors(config: RunConfig, checkpoint: Path, source: str) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, whole tensor) of the tuned model: what trained, and the base where nothing did."""
    from trainer.engine.consolidate import stream_parameters
    from trainer.model.merge import read_adapter, with_base
    from trainer.model.pissa import as_plain_lora

    stream = stream_parameters(checkpoint)
    if config.tune.method is TuneMethod.full:
        return stream
    run_dir = Path(config.run_dir)
    trained, adapter = as_plain_lora(stream, read_adapter(run_dir), run_dir)
    return with_base(trained, source, adapter)


def _compare(config: RunConfig, checkpoint: Path, folder: Path) -> tuple[float, float]:
    """Return how far the trained model's logits, and the folder's own in bf16, are from the folder's in float32.

    A fixed limit would be wrong for both: bf16 through 30 layers moves logits by more than through two, and
    training may have used other kernels than a reader of the folder does.
    """
    from trainer.checkpoint.layout import FINGERPRINT
    from trainer.evaluate.fingerprint import difference, read_fingerprint
    from trainer.model.folder import folder_logits

    saved = read_fingerprint(checkpoint / FINGERPRINT)
    is_bf16 = config.zero.dtype == "bf16" or config.export.dtype != "float32"
    rounded_TV, exact_TV = folder_logits(
        folder, saved.tokens_T, "bfloat16" if is_bf16 else "float32", config.model.trust_remote_code
    )
    kept = len(saved.logits_KV)
    exact_KV = exact_TV[-kept:]
    return difference(exact_KV, saved.logits_KV), difference(exact_KV, rounded_TV[-kept:])


def find_checkpoint(run_dir: Path, which: str) -> Path:
    """Return the verified checkpoint that `last`, `best` or a step number names.

    Raises:
        CheckpointError: There is none, or it does not verify.
    """
    from trainer.checkpoint.commit import find_damage, newest_verified, read_manifest
    from trainer.checkpoint.layout import STATE, find_checkpoints, step_dir, step_of
    from trainer.checkpoint.state import read_state

    newest = newest_verified(run_dir)
    if newest is None:
        raise CheckpointError(
            f"`run_dir` must hold a checkpoint that verifies, but {run_dir} holds none instead. Train first."
        )
    if which == "last":
        return newest[0]
    if which == "best":
        step = read_state(newest[0] / STATE).best_step
    elif which.isdigit():
        step = int(which)
    else:
        raise CheckpointError(
            f"`export.checkpoint` must be last, best or a step number, but is '{which}' instead."
        )
    folder = step_dir(run_dir, step if step is not None else -1)
    if not folder.is_dir():
        kept = ", ".join(str(step_of(entry)) for entry in reversed(find_checkpoints(run_dir)))
        raise CheckpointError(
            f"The checkpoint `{which}` must still be there, but {run_dir} has only those of steps {kept}. Choose "
            "one of them."
        )
    damage = find_damage(folder, read_manifest(folder))
    if damage:
        raise CheckpointError(f"Checkpoint {folder.name} does not verify: {damage}. Choose another.")
    return folder
