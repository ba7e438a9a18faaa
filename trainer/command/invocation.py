"""The words of a command line as a command, overrides and options. Pure but for a look at the run directory."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.command.usage import COMMANDS, SUBCOMMANDS, WHOLE_ALONE
from trainer.config.foreign import key_for
from trainer.errors import ConfigError

OF_EVALUATION = ("run_dir=", "evaluate.", "gate", "interpolate=")
"""How words begin that say how a run is evaluated, and not of what data."""


OF_SCORES = "evaluate.scores.file="
OF_RUNS = ("evaluate", "export", "report", "verify")
"""Commands that go on from a run, which may be given as a path alone."""
NAME_RUNS = {"run_dir", "name", "experiment", "export.adapters"}
"""Keys that say which run is meant."""
WITHOUT_OPTIONS = ("status", "data review")
"""Commands that read directories or files, and make no configuration."""


@dataclass(frozen=True, slots=True)
class Invocation:
    """A parsed command line."""

    command: str
    overrides: list[str]
    config_file: Path | None
    show_config: bool
    is_dry: bool = False
    is_multirun: bool = False


def parse(arguments: Sequence[str]) -> Invocation:
    """Split the command line. A first word that is not a command means train.

    Raises:
        ConfigError: An unknown command or option.
    """
    words = list(arguments)
    command = words.pop(0) if words and "=" not in words[0] and words[0][:1] not in "-+~" else "train"
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1, cutoff=0.5)
        meant = f" Did you mean `{near[0]}`?" if near else ""
        raise ConfigError(f"Unknown command `{command}`.{meant} Commands: {', '.join(COMMANDS)}.")
    if command in SUBCOMMANDS and not (command in WHOLE_ALONE and _is_alone(words)):
        command = f"{command} {_second_word(command, words)}"
    config_file: Path | None = None
    is_multirun = bool({"-m", "--multirun"} & set(words))
    show_config = is_dry = False
    overrides: list[str] = []
    while words:
        word = words.pop(0)
        if word == "--config" and words and command not in WITHOUT_OPTIONS:
            config_file = Path(words.pop(0))
        elif word in ("-m", "--multirun"):
            continue
        elif word == "--dry-run" and (command == "submit" or is_multirun):
            is_dry = True
        elif word in ("--cfg", "--dry-run") and command not in WITHOUT_OPTIONS:
            show_config = True
            is_dry = is_dry or word == "--dry-run"
        elif word.startswith(("--local_rank", "--local-rank")):
            if "=" not in word and words:
                words.pop(0)
        elif word.startswith("-"):
            raise ConfigError(f"Unknown option `{word}`.{_as_key(word)} Options: {_options(command)}.")
        else:
            overrides.append(_in_section(command, word))
    if is_multirun:
        _check_multirun(command, config_file, show_config)
    return Invocation(command, _with_run(command, overrides), config_file, show_config, is_dry, is_multirun)


def _is_alone(words: Sequence[str]) -> bool:
    """Tell whether no second word of a command follows, but KEY=VALUE, an option or nothing."""
    return not words or "=" in words[0] or words[0][:1] in "-+~"


def _options(command: str) -> str:
    """Return the options that a command takes, in words."""
    match command:
        case "train" | "submit":
            return "--config FILE, --cfg, --dry-run, -m, --help"
        case "quickstart":
            return "--cfg, --help"
        case _ if command in WITHOUT_OPTIONS:
            return "--help"
        case _:
            return "--config FILE, --cfg, --help"


def _in_section(command: str, word: str) -> str:
    """Return a word with the key that it may be given without."""
    return _in_export(word) if command == "export" else word


def _with_run(command: str, words: list[str]) -> list[str]:
    """Return the words with the first that is no KEY=VALUE as the run that a command is about, where no other says."""
    if command not in OF_RUNS:
        return words
    bare = next((word for word in words if "=" not in word and word[:1] not in ("~", "+")), None)
    if bare is None or _keys(words) & NAME_RUNS:
        return words
    return [f"run_dir={word}" if word is bare else word for word in words]


def _as_key(option: str) -> str:
    """Return how a key is given, where an option of another trainer's was."""
    key, equals, value = option.lstrip("-").partition("=")
    ours = key_for(key) or (key if "." in key else None)
    return "" if ours is None else f" Keys are given without dashes: {ours}={value if equals else 'VALUE'}."


def _check_multirun(command: str, config_file: Path | None, show_config: bool) -> None:
    """Raise when there can be no sweep of what the command line says."""
    if command not in ("train", "submit"):
        raise ConfigError(
            f"`-m` must be given to train or submit, but is given to {command} instead. Leave it out: a sweep's runs "
            "are directories as others are."
        )
    if config_file is not None:
        raise ConfigError(
            "`-m` must be given words to compose, but --config names a frozen configuration instead. Leave one out."
        )
    if show_config:
        raise ConfigError(
            "`--cfg` must be given for one run, but -m makes several. Use --dry-run to see them."
        )


def _second_word(command: str, words: list[str]) -> str:
    """Take the second word of a command off the command line."""
    known = SUBCOMMANDS[command]
    word = words.pop(0) if words else ""
    if word in known:
        return word
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    meant = f" Did you mean `{command} {near[0]}`?" if near else ""
    shown = f"`{command} {word}`" if word else f"`{command}` alone"
    listed = ", ".join(f"{command} {name}" for name in known)
    raise ConfigError(f"Unknown command {shown}.{meant} Commands: {listed}.")


def _in_export(word: str) -> str:
    """Give `interpolate=0:1:0.1` and `adapters=[a,b]` their section.

    The first gets quotes as well: YAML takes 0:1:0.1 for a number to the base 60.
    """
    key, equals, value = word.partition("=")
    if equals and key in ("interpolate", "export.interpolate"):
        return f"export.interpolate='{value}'"
    return f"export.{word}" if equals and key == "adapters" else word


def frozen_config(invocation: Invocation) -> Path | None:
    """Return the frozen configuration that a command goes on from: of its run, or of the first run it combines.

    Raises:
        ConfigError: There is none, and the command needs one.
    """
    if invocation.command not in OF_RUNS:
        return None
    from trainer.config.snapshot import config_path

    if invocation.config_file is None and _names_no_run(invocation):
        raise ConfigError(
            f"`palimpsest {invocation.command}` must be given a run, but is given none instead. Say which: "
            f"palimpsest {invocation.command} RUN_DIR"
        )
    for override in invocation.overrides:
        if override.startswith("export.adapters="):
            names = [name.strip(" '\"") for name in override.partition("=")[2].strip("[] ").split(",")]
            paths = [config_path(Path(name).expanduser()) for name in names]
            found = next((path for path in paths if path.exists()), None)
            if found is None:
                raise ConfigError(
                    f"`export.adapters` must name at least one run directory, whose base they share, but none of "
                    f"{', '.join(names)} has a config.yaml. Name a run, or give run_dir=RUN as well."
                )
            return found
        if override.startswith("run_dir="):
            path = config_path(Path(override.removeprefix("run_dir=")).expanduser())
            if path.exists():
                return path
            if any(word.startswith(OF_SCORES) for word in invocation.overrides):
                return None  # the folder of an exported reward model
            # The base can be evaluated without a run, by words that name its data.
            names_data = any(not word.lstrip("+~").startswith(OF_EVALUATION) for word in invocation.overrides)
            if invocation.command in ("export", "report", "verify") or not names_data:
                raise ConfigError(_no_run(path.parent))
    return None


def _no_run(folder: Path) -> str:
    """Return the sentence about a folder that holds no run."""
    from trainer.config.nearby import near_place
    from trainer.config.snapshot import SWEEP_RECORD, config_path

    must = "`run_dir` must hold a run, but"
    if not folder.exists():
        near = near_place(str(folder))
        meant = "" if near is None else f" Did you mean {near}?"
        return f"{must} {folder} is not there.{meant} Give the directory of a trained run."
    if (folder / SWEEP_RECORD).exists():
        runs = sorted(one for one in folder.iterdir() if config_path(one).exists())
        such = f", such as run_dir={runs[0]}" if runs else ""
        return f"{must} {folder} holds a sweep instead. Give one of its {len(runs)} runs{such}."
    return f"{must} {folder} has no config.yaml instead. Give the directory of a trained run."


def _names_no_run(invocation: Invocation) -> bool:
    """Tell whether a command goes on from a run and no word says which; the base is evaluated without one."""
    if invocation.command == "evaluate":
        return not invocation.overrides
    return not _keys(invocation.overrides) & NAME_RUNS


def _keys(words: Sequence[str]) -> set[str]:
    return {word.lstrip("+").partition("=")[0] for word in words if "=" in word}


def sweep_folder(invocation: Invocation) -> Path | None:
    """Return the directory of the sweep that a report is asked of; None for that of a run."""
    if invocation.command != "report":
        return None
    from trainer.config.snapshot import SWEEP_RECORD

    given = [word.removeprefix("run_dir=") for word in invocation.overrides if word.startswith("run_dir=")]
    folder = Path(given[-1]).expanduser() if given else None
    return folder if folder is not None and (folder / SWEEP_RECORD).exists() else None
