"""`-m` with `palimpsest train` or `submit`: Hydra's sweeper chooses points, a launcher of ours runs them.

A point is composed and checked as a single run is, gets a directory below the sweep's and starts from its frozen
config.yaml. Loads no torch.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.plugin import Plugin

from trainer.config.override import is_swept
from trainer.config.store import compose_config, compose_sweep, to_standard_error
from trainer.errors import ConfigError, Exit

from .local_launcher import LocalLauncher, LocalLauncherConf
from .outcome import find_outcomes, remember, say_end, write_page
from .point_launcher import MODULE
from .points import read_record
from .slurm_launcher import SlurmLauncher, SlurmLauncherConf
from .sweep import DryRunShown, Sweep, SweepStopped, key_of
from .sweepers import GridSweeper, GridSweeperConf, OptunaSweeper, OptunaSweeperConf

LAUNCHERS = ("slurm", "local")
PLUGINS: tuple[tuple[str, str, type[Plugin], type], ...] = (
    ("hydra/launcher", "slurm", SlurmLauncher, SlurmLauncherConf),
    ("hydra/launcher", "local", LocalLauncher, LocalLauncherConf),
    ("hydra/sweeper", "basic", GridSweeper, GridSweeperConf),
    ("hydra/sweeper", "optuna", OptunaSweeper, OptunaSweeperConf),
)


def start_sweep(command: str, words: Sequence[str], is_dry: bool) -> int:
    """Run a sweep to its end, or hand its jobs in; return the exit code.

    Raises:
        ConfigError: A point breaks a rule; nothing was submitted or started then.
    """
    register()
    words = _without_repeats([*_default_launcher(command, words), *words])
    _check_words(words)
    # A value that a word replaces is told once, and not again by every point.
    say = functools.cache(to_standard_error)
    base = compose_config([word for word in words if not is_swept(word)], say=say)
    sweep = Sweep(words, base, is_dry, say)
    config, context = compose_sweep([*words, f"hydra.sweep.dir={_quoted(str(sweep.folder))}"])
    launcher = str(config.hydra.runtime.choices["hydra/launcher"])
    if launcher not in LAUNCHERS or (command == "submit" and launcher != "slurm"):
        allowed = "slurm for `palimpsest submit`" if command == "submit" else " or ".join(LAUNCHERS)
        raise ConfigError(
            f"`hydra/launcher` must be {allowed}, but is '{launcher}' instead. Leave it out, or use `palimpsest train "
            "-m` for this machine."
        )
    sweeper = Plugins.instance().instantiate_sweeper(
        config=config, hydra_context=context, task_function=sweep
    )
    try:
        sweeper.sweep(list(config.hydra.overrides.task))
    except DryRunShown:
        return Exit.done
    except SweepStopped as stopped:
        print(stopped, file=sys.stderr, flush=True)
        return stopped.code
    else:
        return sweep.end()
    finally:
        sweep.close()


def show_sweep(folder: Path) -> int:
    """Write sweep.json and sweep.html of a sweep anew and print its table; return the exit code."""
    folder = folder.resolve()
    record = read_record(folder)
    assert record is not None
    outcomes = find_outcomes(folder, record)
    remember(folder, record, outcomes)
    say_end(folder, record, outcomes)
    print(f"Figure: {write_page(folder, record, outcomes)}")
    return Exit.done


def register() -> None:
    """Make our launchers and sweepers known to Hydra.

    It instantiates plugins by their name, below a package `hydra_plugins` that a wheel would have to put beside ours:
    they are given one that is in memory only. Hydra's own `basic` sweeper, the default, is replaced: it writes
    multirun.yaml before anything is checked. So is an `optuna` that is installed (hydra-optuna-sweeper).
    """
    plugins = Plugins.instance()
    parent, _, name = MODULE.partition(".")
    try:
        package = importlib.import_module(parent)
    except ImportError:
        package = sys.modules[parent] = ModuleType(parent)
    module = sys.modules[MODULE] = ModuleType(MODULE)
    setattr(package, name, module)
    store = ConfigStore.instance()
    for group, option, plugin, fields in PLUGINS:
        setattr(module, plugin.__name__, plugin)
        plugins.register(plugin)
        store.store(group=group, name=option, node=fields)


def _default_launcher(command: str, words: Sequence[str]) -> list[str]:
    """Return the words that choose a launcher where a person did not; a plain submission does not wait."""
    if any(word.startswith("hydra/launcher=") for word in words):
        return []
    if command == "train":
        return ["hydra/launcher=local"]
    waits = any(word.startswith("hydra.launcher.wait=") for word in words)
    return ["hydra/launcher=slurm", *([] if waits else ["hydra.launcher.wait=false"])]


def _without_repeats(words: Sequence[str]) -> list[str]:
    """Return the words with the last one of every key that is swept somewhere, as Hydra's sweeper takes it."""
    swept = {key_of(word) for word in words if is_swept(word)}
    last = {key_of(word): word for word in words if key_of(word) in swept}
    kept = [last.get(key_of(word), word) for word in words]
    return [
        word for number, word in enumerate(kept) if key_of(word) not in swept or word not in kept[:number]
    ]


def _check_words(words: Sequence[str]) -> None:
    """Raise when a word means something else in a sweep."""
    for word in words:
        key = key_of(word)
        if key in ("run_dir", "name") or key.startswith("sweep."):
            if is_swept(word):
                raise ConfigError(
                    f"`{key}` must be one value for all points, but is '{word.partition('=')[2]}' instead. Points get "
                    "directories and names of their own below it."
                )
        elif key.startswith("hydra.sweep."):
            raise ConfigError(
                f"`{key}` must be left out, but is given. The directory of the sweep is run_dir=FOLDER."
            )


def _quoted(text: str) -> str:
    """Return a string as Hydra takes it literally."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
