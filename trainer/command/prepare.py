"""`palimpsest prepare`: token stores of all sources, and what ranks look for; never inside a process group."""

from __future__ import annotations

import functools
from pathlib import Path

from rich.console import Console

from trainer.command.reviewed import check_reviewed, refuse_unreviewed
from trainer.command.rules import broken_rules
from trainer.config.check import refuse
from trainer.config.check_context import check_context
from trainer.config.rule import Problem, problem
from trainer.config.schema import RunConfig
from trainer.config.snapshot import dated
from trainer.data.types import TokenizerLike
from trainer.errors import DataError


def prepare_data(config: RunConfig) -> None:
    """Make the token stores of all sources and print what is in them."""
    _load_workers_for(config)
    from trainer.data.prepare import prepare
    from trainer.model.cache import context_length
    from trainer.model.load import read_config
    from trainer.model.made_with import check_made_with
    from trainer.model.resolve import resolve_model
    from trainer.model.tokenizer import configured_tokenizer
    from trainer.run.packing import with_packing

    refuse(broken_rules(config, "prepare"))
    config = with_packing(dated(config, Path(config.run_dir)))
    check_generated(config)
    check_samples_whole(config)
    check_reviewed(config)
    source = resolve_model(config.model, Path(config.data.cache_dir))
    hf_config = read_config(source, config.model)
    check_context(context_length(hf_config), config.data.seq_len, config.tune)
    build = functools.partial(configured_tokenizer, config.model, source)
    tokenizer, vocab_size = build(), int(hf_config.vocab_size)
    if config.model.new_tokens:
        vocab_size = max(vocab_size, tokenizer.vocab_size)
    for name, spec in config.data.sources.items():
        if spec.tokenizer is not None:
            check_made_with(f"data.sources.{name}.tokenizer", spec.tokenizer, config.model, tokenizer)
    prepare(config.data, tokenizer, build, vocab_size, Console())


def _load_workers_for(config: RunConfig) -> None:
    """Load what workers need while this process loads the model's code, where a large file is seen at once."""
    from trainer.data.tokens.tokenise import PARALLEL_BYTES, load_workers, num_processes

    files = (Path(source.path or "").expanduser() for source in config.data.sources.values())
    if num_processes(config.data.num_workers) > 1 and any(
        file.is_file() and file.stat().st_size >= PARALLEL_BYTES for file in files
    ):
        load_workers()


def ensure_inputs(config: RunConfig) -> TokenizerLike:
    """Make the model folder and the stores that ranks will look for, when they are missing.

    Returns the tokenizer that the stores are looked up with.
    """
    config = dated(config, Path(config.run_dir))
    check_generated(config)
    refuse_unreviewed(config)
    from trainer.data.store.prepared import find_store, open_each
    from trainer.model.load import read_whole_config
    from trainer.model.packed import packing_of
    from trainer.model.packed_pairs import check_scales
    from trainer.model.packing_kind import check_packing
    from trainer.model.resolve import resolve_model
    from trainer.model.tokenizer import configured_tokenizer
    from trainer.run.packing import with_packing

    config = with_packing(config)
    source = resolve_model(config.model, Path(config.data.cache_dir))
    packing = packing_of(read_whole_config(source, config.model))
    check_packing(packing, source, config.tune.quantise)
    check_scales(source, config.model, packing)
    tokenizer = configured_tokenizer(config.model, source)
    try:
        found = {
            name: find_store(name, spec, config.data, tokenizer) for name, spec in config.data.sources.items()
        }
        there = {name: place for name, place in found.items() if place is not None}
        is_ready = len(open_each(config.data, there)) == len(found)
    except DataError:
        is_ready = False  # prepare says which is damaged, and makes it again
    if not is_ready:
        prepare_data(config)
    return tokenizer


def check_generated(config: RunConfig) -> None:
    """Raise when a source is what `palimpsest replay generate` writes, but it has not run.

    Raises:
        DataError: Says which command makes the samples.
    """
    for found in not_generated(config).values():
        raise DataError(found.sentence)


def not_generated(config: RunConfig) -> dict[str, Problem]:
    """Return the sources that `palimpsest replay generate` writes and has not, with a problem that says so."""
    from trainer.sample.samples import SAMPLES

    folder = config.replay.generate.output_dir
    if folder is None or (samples := Path(folder) / SAMPLES).exists():
        return {}
    return {
        name: problem(
            f"data.sources.{name}",
            f"must have been sampled before training, but {samples} is missing. Run: palimpsest replay generate with "
            "the same overrides.",
        )
        for name, source in config.data.sources.items()
        if source.path is not None and Path(source.path) == samples
    }


def check_samples_whole(config: RunConfig) -> None:
    """Raise when a source is what `palimpsest replay generate` wrote, but not as it was written any more.

    Raises:
        DataError: Names the file.
    """
    from trainer.sample.samples import META, SAMPLES, check_samples

    for source in config.data.sources.values():
        file = Path(source.path or "")
        if file.name == SAMPLES and file.is_file() and (file.parent / META).is_file():
            check_samples(file)
