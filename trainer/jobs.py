"""What the commands do outside a process group: prepare, and what must be there before ranks start."""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path

from rich.console import Console

from trainer.config.check import check_config
from trainer.config.record import read_inputs, refuse_other_inputs
from trainer.config.schema import RunConfig
from trainer.config.snapshot import dated
from trainer.config.tune import Quantise
from trainer.data.types import TokenizerLike
from trainer.dist.hosts import parse_hostfile
from trainer.errors import CheckpointError, ConfigError, DataError, TopologyError
from trainer.runtime.local import free_port
from trainer.runtime.remote import Hosts


def prepare_data(config: RunConfig) -> None:
    """Make the token stores of all sources and print what is in them."""
    from trainer.data.prepare import prepare
    from trainer.model.load import check_context, read_config
    from trainer.model.resolve import resolve_model
    from trainer.model.tokenizer import configured_tokenizer

    check_config(config)
    config = dated(config, Path(config.run_dir))
    check_generated(config)
    check_samples_whole(config)
    source = resolve_model(config.model, Path(config.data.cache_dir))
    hf_config = read_config(source, config.model)
    check_context(hf_config, config.data.seq_len)
    build = functools.partial(configured_tokenizer, config.model, source)
    tokenizer, vocab_size = build(), int(hf_config.vocab_size)
    if config.model.new_tokens:
        vocab_size = max(vocab_size, tokenizer.vocab_size)
    prepare(config.data, tokenizer, build, vocab_size, Console())


def ensure_inputs(config: RunConfig) -> TokenizerLike:
    """Make the model folder and the stores that ranks will look for, when they are missing.

    Returns the tokenizer that the stores are looked up with.
    """
    config = dated(config, Path(config.run_dir))
    check_generated(config)
    from trainer.data.prepared import find_store
    from trainer.data.store import open_store
    from trainer.model.load import check_trainable, read_config
    from trainer.model.resolve import resolve_model
    from trainer.model.tokenizer import configured_tokenizer

    source = resolve_model(config.model, Path(config.data.cache_dir))
    check_trainable(read_config(source, config.model), source)
    tokenizer = configured_tokenizer(config.model, source)
    try:
        found = [find_store(name, spec, config.data, tokenizer) for name, spec in config.data.sources.items()]
        is_ready = all(place is not None and open_store(place) for place in found)
    except DataError:
        is_ready = False  # prepare says which is damaged, and makes it again
    if not is_ready:
        prepare_data(config)
    return tokenizer


def known_base(config: RunConfig, source: str) -> str | None:
    """Return the digest of the base if the run recorded one to compare it with."""
    from trainer.model.digest import base_digest

    recorded = read_inputs(Path(config.run_dir))
    if recorded is None or recorded["base"] is None:
        return None
    is_packed = config.tune.quantise is not Quantise.none
    return base_digest(config.model, source, Path(config.data.cache_dir), is_packed)


def refuse_other_model(config: RunConfig, source: str) -> None:
    """Raise when the base or the tokenizer of a run is not what it was trained with.

    Raises:
        DataError: Names what differs.
    """
    from trainer.model.tokenizer import configured_tokenizer

    tokenizer = configured_tokenizer(config.model, source).digest
    refuse_other_inputs(Path(config.run_dir), tokenizer=tokenizer, base=known_base(config, source))


def check_draws(config: RunConfig, tokenizer: TokenizerLike) -> None:
    """Raise before ranks start when the run would draw what the stores do not hold."""
    from trainer.data.prepared import open_all
    from trainer.mixing import Mixing

    stores = open_all(config.data, tokenizer)
    mixing = Mixing(config, stores, config.train.global_batch_tokens // config.data.seq_len)
    if config.replay.kl.beta:
        mixing.replay_to_draw()


def check_quantiser(config: RunConfig) -> None:
    """Raise before ranks start when the base is to be quantised and nothing here can."""
    if config.tune.quantise is not Quantise.none:
        from trainer.model.quantise import require_bitsandbytes

        require_bitsandbytes()


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
    samples = Path(folder) / SAMPLES
    for name, source in config.data.sources.items():
        if source.path is not None and Path(source.path) == samples and not samples.exists():
            raise DataError(
                f"`data.sources.{name}` must have been sampled before training, but {samples} is missing. Run: "
                "palimpsest replay generate with the same overrides."
            )


def check_samples_whole(config: RunConfig) -> None:
    """Raise when a source is what `palimpsest replay generate` wrote, but not as it was written any more.

    Raises:
        DataError: Names the file.
    """
    from trainer.replay.store import META, SAMPLES, check_samples

    for source in config.data.sources.values():
        file = Path(source.path or "")
        if file.name == SAMPLES and file.is_file() and (file.parent / META).is_file():
            check_samples(file)


def count_ranks(config: RunConfig) -> int:
    """Return the ranks of this machine: as asked, else one a GPU, else one.

    Raises:
        TopologyError: More are asked for than there are visible GPUs.
    """
    import torch

    num_gpus = torch.cuda.device_count()
    asked = config.cluster.ranks_per_node
    if asked > num_gpus > 0 and os.environ.get("DS_ACCELERATOR") != "cpu":
        raise TopologyError(
            f"`cluster.ranks_per_node` must be at most the {num_gpus} GPU(s) that this process sees, but is {asked} "
            "instead. Ask for fewer, or name more of them in CUDA_VISIBLE_DEVICES."
        )
    return asked or max(num_gpus, 1)


def with_hosts(config: RunConfig) -> tuple[RunConfig, Hosts | None]:
    """Take nodes and ranks from the hostfile; return the hosts beside the configuration, None without one.

    Raises:
        ConfigError: There is no such file.
        TopologyError: It cannot be used.
    """
    cluster = config.cluster
    if cluster.hostfile is None:
        return config, None
    path = Path(cluster.hostfile).expanduser().absolute()
    try:
        hosts = parse_hostfile(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"`cluster.hostfile` must be a file of HOST slots=N lines, but {path} cannot be read: {error}. Set "
            "cluster.hostfile=FILE."
        ) from error
    num_ranks = next(iter(hosts.values()))
    port = cluster.master_port or free_port()
    found = dataclasses.replace(
        cluster, hostfile=str(path), num_nodes=len(hosts), ranks_per_node=num_ranks, master_port=port
    )
    return dataclasses.replace(config, cluster=found), Hosts(
        list(hosts), num_ranks, path, cluster.deepspeed_runner, port, cluster.cpus_per_rank
    )


def find_checkpoint(run_dir: Path, which: str) -> Path:
    """Return the verified checkpoint that `last`, `best` or a step number names.

    Raises:
        CheckpointError: There is none, or it does not verify.
    """
    from trainer.checkpoint.layout import STATE, find_checkpoints, step_dir, step_of
    from trainer.checkpoint.state import read_state
    from trainer.checkpoint.verify import inspect, newest_verified

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
    damage = inspect(folder)[1]
    if damage:
        raise CheckpointError(f"Checkpoint {folder.name} does not verify: {damage}. Choose another.")
    return folder
