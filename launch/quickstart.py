"""`palimpsest quickstart`: from an empty folder to a trained, exported model, without a GPU or a model hub.

Every part that trains or writes weights is a command of its own, printed as a person would type it. What is there
already is kept, so that the same words go on after an interruption.
"""

from __future__ import annotations

import errno
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]

from trainer import __version__
from trainer.checkpoint.space import BYTES_PER_PARAMETER, check_space, demand
from trainer.command.plan import forecast_without_torch
from trainer.config.check import check_config
from trainer.config.many import many
from trainer.config.model import ModelConfig, ModelKind
from trainer.config.schema import RunConfig
from trainer.config.snapshot import refuse_another
from trainer.config.store import compose_config, to_yaml
from trainer.dist.env import is_rank
from trainer.errors import ConfigError, Exit
from trainer.export.earlier import refuse_foreign
from trainer.runtime.job import as_shells_tell
from trainer.runtime.signals import handed_on
from trainer.runtime.tied import tied

from .attempts import has_finished
from .closing import MEASURED, in_short, show_result
from .corpus import corpus_path, write_corpus

NUM_PARTS = 7
EXPERIMENT = "experiment=quickstart"
SOURCE = "data.sources.python_reference.path"
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
EXPORTED = ("config.json", "adapter_config.json")
"""Either says that an export is there: it appears whole or not at all."""


class PartStopped(Exception):
    """A part ended with an exit code other than 0, and what it printed says why; or a signal asked to stop."""

    def __init__(self, number: int, code: int) -> None:
        """Keep the number of the part and its exit code."""
        self.number, self.code = number, code


def start_quickstart(overrides: Sequence[str], is_shown: bool) -> int:
    """Run all parts that are not done yet, and print the result; return the exit code.

    Args:
        is_shown: Only print the resolved configuration.
    Raises:
        TrainerError: What can be known to be wrong, before anything is downloaded.
    """
    if is_rank(os.environ):
        raise ConfigError(
            "`quickstart` must be started alone, because it starts the ranks itself, but this is a rank of a launcher "
            "instead. Start it from a shell: palimpsest quickstart"
        )
    words, config = _compose(overrides)
    if is_shown:
        print(to_yaml(config), end="")
        return Exit.done
    run_dir = Path(config.run_dir)
    check_config(config, config.cluster.ranks_per_node)
    refuse_another(config, run_dir)
    # Nothing is looked up on a hub unless it is asked for.
    for name in OFFLINE:
        os.environ.setdefault(name, "1")
    _check_room(config)
    _make_folder(run_dir)
    try:
        return _run_parts(words, config)
    except PartStopped as stopped:
        print(
            f"\nStopped in part {stopped.number} of {NUM_PARTS} (exit code {stopped.code}); what is above says why. "
            "Start the same command again to go on from there.",
            file=sys.stderr,
        )
        return stopped.code
    except KeyboardInterrupt:
        print("\nInterrupted. Start the same command again: what is done is kept.", file=sys.stderr)
        return Exit.interrupted


def _compose(overrides: Sequence[str]) -> tuple[list[str], RunConfig]:
    """Return the words for the commands, and the configuration that they make."""
    num_gpus = _num_gpus()
    # One rank on a machine with one GPU, where ZeRO-3 would have nothing to shard and only cost time.
    num_ranks, zero = (1, "zero1") if num_gpus == 1 else (2, "zero3")
    chosen = [f"cluster.ranks_per_node={num_ranks}", f"zero={zero}"]
    given = {word.partition("=")[0] for word in overrides}
    words = [EXPERIMENT, *(word for word in chosen if word.partition("=")[0] not in given), *overrides]
    config = compose_config(words)
    source = config.data.sources.get("python_reference")
    if source is not None and source.path is None:
        words.insert(1, f"{SOURCE}={corpus_path(Path(config.data.cache_dir))}")
        config = compose_config(words)
    return words, config


def _num_gpus() -> int:
    # As the command line has found out; see cli.py.
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        return 0
    from trainer.preflight.inventory import num_visible_gpus

    num_gpus = num_visible_gpus()
    if not num_gpus:
        os.environ["DS_ACCELERATOR"] = "cpu"
    return num_gpus


def _check_room(config: RunConfig) -> None:
    """Raise when the disk has no room for the checkpoints to come: training would say so after the model is sampled."""
    if is_trained(config) or not config.checkpoint.enabled:
        return
    forecast = forecast_without_torch(config, config.cluster.ranks_per_node)
    if forecast is None:
        return  # training itself looks
    run_dir, every = Path(config.run_dir), config.evaluate.every_steps
    asked = demand(run_dir, config.checkpoint, every, num_steps=config.train.max_steps)
    check_space(run_dir, forecast.checkpoint_bytes // BYTES_PER_PARAMETER, asked)


def _make_folder(run_dir: Path) -> None:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if not os.access(run_dir, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ConfigError(
            f"`run_dir` must be a folder you can write to, but {run_dir} is not: {error.strerror}. Set run_dir."
        ) from error


def _run_parts(words: list[str], config: RunConfig) -> int:
    run_dir = Path(config.run_dir)
    _begin(1, "Environment")
    print(
        f"palimpsest {__version__}, Python {platform.python_version()}, {many(config.cluster.ranks_per_node, 'rank')}"
    )

    _begin(2, f"Base model: {_model_name(config.model)}")
    source = _base_model(config)

    corpus = corpus_path(Path(config.data.cache_dir))
    if f"{SOURCE}={corpus}" in words:
        _begin(3, "Corpus: the Python language reference")
        if not corpus.is_file():
            write_corpus(corpus)
        print(corpus)
    else:
        _begin(3, "Corpus: your own")

    if any(_is_generated(one.path, config) for one in config.data.sources.values()):
        _run(4, ["replay", "generate", *words])
    else:
        _begin(4, "Replay: none of this run's sources is generated")

    if is_trained(config):
        _begin(5, f"Training: {in_short(run_dir)} is trained already")
    else:
        refuse_foreign(run_dir / "export")
        shutil.rmtree(run_dir / "export", ignore_errors=True)  # of an earlier training
        _run(5, ["train", *words])

    export = Path(config.export.output_dir or run_dir / "export")
    asked = [word for word in words if word.startswith("export.")]
    # One that is there may be of other words than these.
    if not asked and any((export / name).is_file() for name in EXPORTED):
        _begin(6, f"Export: {in_short(export)} is there already")
    else:
        _run(6, ["export", f"run_dir={in_short(run_dir)}", *asked])

    _begin(7, "Result")
    code = show_result(run_dir, source, export)
    elapsed_s = round(_elapsed_s())
    print(f"\nTotal time: {elapsed_s // 60} min {elapsed_s % 60} s", flush=True)
    if shutil.which("palimpsest") is None:
        print(
            f"Next, in a shell: source {Path(sys.prefix) / 'bin' / 'activate'}, and then palimpsest init ..."
        )
    return code


def is_trained(config: RunConfig) -> bool:
    """Tell whether the run reached its end, with all that is shown of it."""
    run_dir = Path(config.run_dir)
    is_measured = not config.evaluate.forgetting or (run_dir / MEASURED).is_file()
    return config.checkpoint.resume and is_measured and has_finished(run_dir)


def _is_generated(path: str | None, config: RunConfig) -> bool:
    """Tell whether a source is what `palimpsest replay generate` writes with this configuration."""
    folder = config.replay.generate.output_dir
    return path is not None and folder is not None and Path(path).is_relative_to(folder)


def _base_model(config: RunConfig) -> str:
    """Return what the run begins with, and print it."""
    from trainer.model.resolve import resolve_model

    cache_dir = Path(config.data.cache_dir)
    if config.model.kind is ModelKind.embedded:
        # A process of its own: this one would keep most of a GB that the ranks need.
        _wait_for(2, ["trainer.model.embedded", str(cache_dir)])
        return resolve_model(config.model, cache_dir)
    source = resolve_model(config.model, cache_dir)
    print(source)
    return source


def _model_name(model: ModelConfig) -> str:
    return {ModelKind.embedded: "SmolLM2-135M-Instruct", ModelKind.tiny: "tiny, random weights"}.get(
        model.kind, model.path
    )


def _begin(number: int, title: str) -> None:
    print(f"\n[{number}/{NUM_PARTS} {_elapsed_s():3.0f}s] {title}", flush=True)


def _elapsed_s() -> float:
    """Return the age of this process: launch/quickstart.sh becomes it, so that its installation counts."""
    return max(time.time() - float(psutil.Process().create_time()), 0.0)


def _run(number: int, words: list[str]) -> None:
    """Run `palimpsest` with these words."""
    _begin(number, f"palimpsest {shlex.join(words)}")
    _wait_for(number, ["trainer", *words])


def _wait_for(number: int, words: list[str]) -> None:
    """Run a module as a process of its own; signals to this one are passed on.

    Raises:
        PartStopped: It ended with another exit code than 0, or was done when a signal asked to stop.
    """
    told: list[int] = []

    def forward(signal_number: int) -> None:
        told.append(signal_number)
        process.send_signal(signal_number)

    with handed_on((signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1), forward) as begin:
        # A session of its own: Ctrl-C reaches this process alone, which passes it on once.
        command = tied([sys.executable, "-m", *words], signal.SIGTERM)
        process = subprocess.Popen(command, start_new_session=True)
        begin()
        code = as_shells_tell(process.wait())
    if code or told:
        raise PartStopped(number, code or Exit.preempted)
