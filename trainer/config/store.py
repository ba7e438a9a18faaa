"""Compose the configuration with Hydra and turn its errors into one sentence with the nearest name.

Nothing is written to disk here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose, initialize_config_module
from hydra._internal.callbacks import Callbacks
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from trainer.config.check_text import check_texts
from trainer.config.ds_file import with_ds_file
from trainer.config.entry import check_values, is_entry, key_of, unreadable
from trainer.config.exclusive import Hands, settle
from trainer.config.explain import (
    is_unknown,
    missing_option,
    nearest_group,
    nearest_key,
    nearest_options,
    override_key,
    unknown_key,
    wrong_value,
)
from trainer.config.idle import OF_TRAINING, replaced, too_late, without_use
from trainer.config.options import CONF_MODULE, Option, group_options, own_options, searchpath_folders
from trainer.config.override import check_word, is_swept, read_entries, readable, take_out, typed, typed_keys
from trainer.config.own import chosen_options, keep_own, raw
from trainer.config.paths import make_absolute
from trainer.config.rates import is_others, said_of
from trainer.config.reference import EnvText, as_given, keep_references
from trainer.config.schema import RunConfig
from trainer.config.start import with_start
from trainer.config.together import all_told, word_at_fault
from trainer.config.yaml_text import TooMuch, text_of
from trainer.errors import ConfigError

_SEAL = "# sha256: "
NO_WORKING_DIRECTORY = "The working directory must be there, but was deleted. Change to another one."


def to_standard_error(line: str) -> None:
    """Say a line beside the output proper."""
    print(line, file=sys.stderr, flush=True)


def compose_config(
    overrides: Sequence[str], config_name: str = "train", say: Callable[[str], None] = to_standard_error
) -> RunConfig:
    """Compose groups and overrides into a checked tree of dataclasses; all words that cannot be are told together.

    Args:
        say: Is told of every value that a person's word took the place of.
    Raises:
        ConfigError: An unknown key, group or option, or a value of the wrong type.
    """
    lines: list[str] = []
    config = all_told(overrides, lambda words: _composed(words, config_name, lines.append))
    for line in (*replaced(overrides), *lines, *without_use(config, overrides)):
        say(line)
    return config


def _composed(overrides: Sequence[str], config_name: str, say: Callable[[str], None]) -> RunConfig:
    """Compose once; the first word that cannot be is an error."""
    with _composing(overrides):
        others = [readable(word) for word in overrides if not is_entry(word)]
        for word in others:
            check_word(word)
        composed = compose(config_name=config_name, overrides=others)
        # Hydra cannot add an entry to a typed mapping, and a new source or gate rule is one.
        OmegaConf.set_struct(composed, False)
        entries = take_out(composed, [word for word in overrides if is_entry(word)])
        if entries:
            composed.merge_with(read_entries(entries))
        if any(word.startswith("+") for word in others):  # Hydra adds what the schema does not know, too
            OmegaConf.merge(_schema(), OmegaConf.to_container(composed))
        own = _own_options(config_name, others)
        for line in keep_own(composed, own, lambda: typed_keys(overrides)) if own else ():
            say(line)
        given = [key for one in own for key in one.given]
        for line in settle(composed, Hands(typed(overrides), lambda: given)):
            say(line)
        _name_after_folder(composed, overrides)
    config = with_start(to_dataclass(with_ds_file(composed, overrides)), typed_keys(overrides))
    if is_others(config) and "optim.lr" not in (*given, *typed_keys(overrides)):
        say(said_of(config))
    return config


def _name_after_folder(config: DictConfig, overrides: Sequence[str]) -> None:
    """Give a run of which only the directory was said the name of that."""
    is_said = config.name != RunConfig.name or any(key_of(word) == "name" for word in overrides)
    if not is_said and "${name}" not in str(raw(config, "run_dir")):
        config.name = Path(str(config.run_dir)).absolute().name or RunConfig.name


def _own_options(config_name: str, overrides: Sequence[str]) -> tuple[Option, ...]:
    """Return what is chosen of the files of a person's own, those of the folders that hydra.searchpath names."""
    folders = searchpath_folders(overrides)
    hydra = GlobalHydra.instance().hydra
    if not folders or hydra is None:
        return ()
    chosen = hydra.config_loader.compute_defaults_list(config_name, list(overrides), RunMode.RUN).defaults
    return chosen_options(folders, [str(default.config_path) for default in chosen])


def compose_sweep(overrides: Sequence[str]) -> tuple[DictConfig, HydraContext]:
    """Compose what Hydra itself has to know of a sweep: its sweeper, its launcher, and the words they are given.

    Raises:
        ConfigError: As compose_config; for a key that is swept only its syntax is looked at.
    """
    # A new entry that is swept is only carried along.
    words = [readable(word) for word in overrides if not is_entry(word) or is_swept(word)]
    with _composing(overrides):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        composed = hydra.compose_config(
            "train", words, run_mode=RunMode.MULTIRUN, with_log_configuration=False
        )
        return composed, HydraContext(hydra.config_loader, Callbacks(composed))


@contextlib.contextmanager
def _composing(overrides: Sequence[str]) -> Iterator[None]:
    """Let Hydra find the configuration, and turn its errors into sentences."""
    _register_schema()
    for folder in searchpath_folders(overrides):
        list(own_options(folder))  # Hydra reads what they come to, however much that is
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module(config_module=CONF_MODULE, version_base="1.3"):
            yield
    except FileNotFoundError as error:
        raise ConfigError(NO_WORKING_DIRECTORY) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"A configuration file is not valid YAML: {_one_line(error)}.") from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(_explain(error, overrides)) from error


@functools.cache
def _register_schema() -> None:
    """Tell Hydra what a configuration may hold. A tenth of the time of composing one, so only once."""
    ConfigStore.instance().store(name="run_schema", node=RunConfig)


@functools.cache
def _schema() -> DictConfig:
    """Return what a configuration may hold, to be merged into; merging copies it, which takes a fifth of making it."""
    return cast(DictConfig, OmegaConf.structured(RunConfig))


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a frozen config.yaml, check it against the schema, and apply `key=value` overrides.

    Raises:
        ConfigError: The file cannot be read, or words that cannot be, all of them.
    """
    config = all_told(overrides, lambda words: _loaded(path, words))
    for line in (*replaced(overrides), *without_use(config, overrides)):
        to_standard_error(line)
    return config


def _loaded(path: Path, overrides: Sequence[str]) -> RunConfig:
    """Read and apply once; the first word that cannot be is an error."""
    try:
        loaded = OmegaConf.load(io.StringIO(_unsealed(path)))
        merged = cast(DictConfig, OmegaConf.merge(_schema(), loaded))
        chosen = [word for word in overrides if _is_gate(word)]
        for word in chosen:
            merged.merge_with({"gate": _option("gate", word.partition("=")[2])})
        words = take_out(merged, [word for word in overrides if word not in chosen])
        if words:
            merged.merge_with(read_entries(words))
        for line in settle(merged, Hands(typed(words))):
            to_standard_error(line)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    except TooMuch as error:
        raise ConfigError(
            f"{path} must be a configuration, but {error} instead. Bring it back from a copy."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {_one_line(error)}.") from error
    except OmegaConfBaseException as error:
        sentence = _explain(error, overrides)
        is_typed = word_at_fault(sentence, overrides) is not None
        raise ConfigError(sentence if is_typed else f"{path}: {sentence}") from error
    return to_dataclass(with_ds_file(merged, overrides))


def sealed(text: str) -> str:
    """Return a YAML text that ends with a digest of itself, as a comment."""
    return f"{text}{_SEAL}{hashlib.sha256(text.encode()).hexdigest()}\n"


def _unsealed(path: Path) -> str:
    """Return a file's text; raise where it has a digest of itself and is another. One without is a person's own."""
    whole = text_of(path)
    text, found, digest = whole.rpartition(_SEAL)
    if found and hashlib.sha256(text.encode()).hexdigest() != digest.strip():
        raise ConfigError(
            f"{path} must be as it was frozen, but was changed or damaged since. Bring it back from a copy, or give "
            f"another value as KEY=VALUE; to use it as it is, delete the line that begins with {_SEAL.strip()}."
        )
    return whole


def _is_gate(override: str) -> bool:
    """Tell whether an override chooses the gate, the one group that later commands of a run decide."""
    return override.startswith("gate=")


def _option(group: str, name: str) -> DictConfig:
    """Read one option of a group; `true` is the default one."""
    from importlib import resources

    name = "default" if name == "true" else name
    options = group_options()[group]
    if name not in options:
        raise ConfigError(
            f"`{group}={name}` is not an option of the group `{group}`.{nearest_options(name, options)} "
            f"Options: {', '.join(options)}."
        )
    text = (resources.files(CONF_MODULE) / group / f"{name}.yaml").read_text(encoding="utf-8")
    return cast(DictConfig, OmegaConf.create(text or "{}"))


def to_dataclass(config: DictConfig) -> RunConfig:
    """Cross from OmegaConf to plain dataclasses, once; paths are taken from the working directory."""
    try:
        result = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise ConfigError(_explain(error, ())) from error
    if not isinstance(result, RunConfig):
        raise ConfigError("The primary configuration must begin its defaults list with run_schema.")
    check_values(result)
    keep_references(result, OmegaConf.to_container(config))
    try:
        make_absolute(result, Path.cwd())
    except FileNotFoundError as error:
        raise ConfigError(NO_WORKING_DIRECTORY) from error
    check_texts(result)
    return result


def say_too_late(path: Path, overrides: Sequence[str], command: str) -> None:
    """Say which words change nothing of a command that goes on from a trained run.

    Args:
        path: The run's frozen config.yaml.
    """
    words = [word for word in overrides if word.startswith(OF_TRAINING)]
    for line in too_late(load_config(path), words, command) if words else ():
        to_standard_error(line)


def to_yaml(config: RunConfig) -> str:
    """Return the resolved configuration as YAML; what names the environment stands as it was given."""
    return str(OmegaConf.to_yaml(OmegaConf.structured(as_given(config))))


def to_plain(config: RunConfig) -> dict[str, Any]:
    """Return the configuration as nested dicts with enums by name; what names the environment as it was given."""
    return cast(dict[str, Any], _plain(config))


def _plain(section: Any) -> Any:
    if isinstance(section, Enum):
        return section.name
    if isinstance(section, EnvText):
        return section.raw
    if isinstance(section, list | tuple):
        return [_plain(one) for one in section]
    pairs = vars(section) if dataclasses.is_dataclass(section) else section
    return {name: _plain(one) for name, one in pairs.items()} if isinstance(pairs, dict) else section


def _explain(error: Exception, overrides: Sequence[str]) -> str:
    """Turn a hydra or omegaconf error into a sentence with the key and the nearest valid name."""
    if isinstance(error, MissingConfigException):
        return missing_option((error.missing_cfg_file or "").removesuffix(".yaml"))
    if isinstance(error, OverrideParseException):
        word = str(error.override)
        key = key_of(word)
        return (
            str(unreadable(word))
            if key.isascii() or "=" not in word or "/" in key
            else f"Unknown key `{key}`.{nearest_key(key)}"
        )
    cause: BaseException = error
    while cause.__cause__ is not None and not getattr(cause, "full_key", None):
        cause = cause.__cause__
    full_key = getattr(cause, "full_key", None)
    if isinstance(cause, MissingMandatoryValue):
        return f"`{full_key}` must be given, but is missing. Set {full_key}=VALUE."
    several = next((word for word in overrides if not is_entry(word) and is_swept(word)), None)
    if several is not None and isinstance(error, ConfigCompositionException) and "multirun" in str(error):
        key, _, values = several.partition("=")
        return (
            f"`{key}` must be one value, but is '{values}' instead. Sweep over it with -m, or write [{values}] for a "
            "list."
        )
    first_line = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
    if not full_key and isinstance(error, ConfigCompositionException):
        full_key = override_key(str(error), overrides)
    if full_key and is_unknown(cause, first_line):
        return unknown_key(full_key, overrides)
    given = next((word for word in overrides if key_of(word) == full_key), None)
    if not full_key:  # some messages name the value alone
        value = first_line.rpartition("value: ")[2]
        given = next((word for word in overrides if value and word.partition("=")[2] == value), None)
    key = full_key or (key_of(given) if given is not None else "")
    sentence = wrong_value(key, first_line, given) if key else None
    if sentence is not None:
        return sentence
    if full_key:
        return f"`{full_key}`: {first_line.rstrip('.')}."
    return f"{first_line.rstrip('.')}.{nearest_group(first_line, overrides)}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
