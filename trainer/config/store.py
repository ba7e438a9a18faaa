"""Compose the configuration with Hydra and turn its errors into one sentence with the nearest name.

The only place, with the command line, that imports hydra. Nothing is written to disk here.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose, initialize_config_module
from hydra._internal.callbacks import Callbacks
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from trainer.config.ds_file import with_ds_file
from trainer.config.entry import check_values, is_entry, key_of, unreadable
from trainer.config.exclusive import Hands, settle, touches
from trainer.config.explain import (
    is_unknown,
    missing_option,
    nearest,
    nearest_group,
    nearest_key,
    override_key,
    wrong_value,
)
from trainer.config.options import CONF_MODULE, group_options, own_options, searchpath_folders
from trainer.config.paths import make_absolute
from trainer.config.schema import RunConfig
from trainer.config.together import all_told, word_error
from trainer.errors import ConfigError

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
    for line in lines:
        say(line)
    return config


def _composed(overrides: Sequence[str], config_name: str, say: Callable[[str], None]) -> RunConfig:
    """Compose once; the first word that cannot be is an error."""
    with _composing(overrides):
        others = [word for word in overrides if not is_entry(word)]
        for word in others:
            _check_word(word)
        composed = compose(config_name=config_name, overrides=others)
        # Hydra cannot add an entry to a typed mapping, and a new source or gate rule is one.
        OmegaConf.set_struct(composed, False)
        entries = [word for word in overrides if is_entry(word)]
        if entries:
            composed.merge_with(read_entries(entries))
        if any(word.startswith("+") for word in others):  # Hydra adds what the schema does not know, too
            OmegaConf.merge(_schema(), OmegaConf.to_container(composed))
        for line in settle(composed, Hands(_typed(overrides), lambda: _own_keys(config_name, others))):
            say(line)
    return to_dataclass(with_ds_file(composed, overrides))


def _typed(overrides: Sequence[str]) -> list[str]:
    """Return the keys, of those that exclude each other, that words give a value to; null leaves open."""
    found: list[str] = []
    for word in overrides:
        key = key_of(word)
        # A word such as model=tiny names an option.
        if "=" not in word or word.startswith("~") or not touches(key) or is_swept(word):
            continue
        value = OmegaConf.select(read_entries([word]), key)
        found += _leaves(key, value)
    return found


def _leaves(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, DictConfig):
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name!s}", inner)
    elif value is not None:
        yield key


def _own_keys(config_name: str, overrides: Sequence[str]) -> frozenset[str]:
    """Return the keys that files of a person's own give: those of the folders that hydra.searchpath names."""
    folders = searchpath_folders(overrides)
    hydra = GlobalHydra.instance().hydra
    if not folders or hydra is None:
        return frozenset()
    chosen = hydra.config_loader.compute_defaults_list(config_name, list(overrides), RunMode.RUN).defaults
    paths = {default.config_path for default in chosen}
    options = [option for folder in folders for option in own_options(folder)]
    return frozenset(key for one in options if f"{one.group}/{one.name}" in paths for key in one.given)


def compose_sweep(overrides: Sequence[str]) -> tuple[DictConfig, HydraContext]:
    """Compose what Hydra itself has to know of a sweep: its sweeper, its launcher, and the words they are given.

    Raises:
        ConfigError: As compose_config; for a key that is swept only its syntax is looked at.
    """
    # A new entry that is swept is only carried along.
    words = [word for word in overrides if not is_entry(word) or is_swept(word)]
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
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module(config_module=CONF_MODULE, version_base="1.3"):
            yield
    except FileNotFoundError as error:
        raise ConfigError(NO_WORKING_DIRECTORY) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"A configuration file is not valid YAML: {_one_line(error)}.") from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise word_error(_explain(error, overrides), overrides) from error


@functools.cache
def _register_schema() -> None:
    """Tell Hydra what a configuration may hold. A tenth of the time of composing one, so only once."""
    ConfigStore.instance().store(name="run_schema", node=RunConfig)


@functools.cache
def _schema() -> DictConfig:
    """Return what a configuration may hold, to be merged into; merging copies it, which takes a fifth of making it."""
    return cast(DictConfig, OmegaConf.structured(RunConfig))


def is_swept(override: str) -> bool:
    """Tell whether an override gives several values, in Hydra's words; what cannot be read gives one."""
    try:
        return OverridesParser.create().parse_override(override).is_sweep_override()
    except HydraException:
        return False


def read_entries(overrides: Sequence[str]) -> DictConfig:
    """Return what overrides say, as nested mappings. Values are YAML as in a file; one in brackets is Hydra's.

    Raises:
        ConfigError: A word that is no KEY=VALUE, or a value that cannot be read.
    """
    read = OmegaConf.create()
    for word in overrides:
        key, value = key_of(word), word.partition("=")[2]
        if "=" not in word or not all(part.strip() for part in key.split(".")):
            raise unreadable(word)
        if word.startswith("~"):
            raise ConfigError(
                f"`{key}` must be given, but '{word}' would remove it instead. Set another value, or leave it out."
            )
        one = OmegaConf.create()
        try:
            if value.startswith(("{", "[")):
                OmegaConf.update(one, key, OverridesParser.create().parse_override(word).value())
            else:
                one = OmegaConf.from_dotlist([f"{key}={value}"])
        except (yaml.YAMLError, HydraException) as error:
            raise unreadable(word) from error
        above = [key.rsplit(".", depth)[0] for depth in range(1, key.count(".") + 1)]
        for name, found in ((name, OmegaConf.select(read, name)) for name in above):
            if found is not None and not isinstance(found, DictConfig):
                # The merge would put a mapping in its place.
                raise ConfigError(
                    f"`{name}` must be a mapping for `{word}`, but is '{found}' too. Leave one out."
                )
        read = cast(DictConfig, OmegaConf.merge(read, one))
    return read


def _check_word(word: str) -> None:
    """Refuse what Hydra would answer in its own words: no key, a package, or a group that is given no name."""
    try:
        parsed = OverridesParser.create().parse_override(word)
    except HydraException:
        return  # explained where Hydra raises it
    group = parsed.key_or_group
    if not group:
        raise unreadable(word)
    if parsed.package is not None:
        raise ConfigError(
            f"`{group}` must be given without Hydra's '@', but is '{word}' instead. Write {group}=VALUE."
        )
    groups = group_options()
    value = parsed.value()
    names = value if isinstance(value, list) else [value]
    if group not in groups or parsed.is_delete() or isinstance(value, dict) or parsed.is_sweep_override():
        return
    if not names or not all(isinstance(name, str | QuotedString) for name in names):
        none = f"Set {group}=none." if "none" in groups[group] else "Leave it out for the default."
        raise ConfigError(
            f"`{group}` must be the name of an option, but is {word.partition('=')[2]} instead. {none} Options: "
            f"{', '.join(groups[group])}."
        )


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a frozen config.yaml, check it against the schema, and apply `key=value` overrides."""
    try:
        loaded = OmegaConf.load(path)
        merged = cast(DictConfig, OmegaConf.merge(_schema(), loaded))
        chosen = [word for word in overrides if _is_gate(word)]
        for word in chosen:
            merged.merge_with({"gate": _option("gate", word.partition("=")[2])})
        words = [word for word in overrides if word not in chosen]
        if words:
            merged.merge_with(read_entries(words))
        for line in settle(merged, Hands(_typed(words))):
            to_standard_error(line)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {_one_line(error)}.") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_explain(error, overrides)}") from error
    return to_dataclass(with_ds_file(merged, overrides))


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
            f"`{group}={name}` is not an option of the group `{group}`.{nearest(name, options)} "
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
    try:
        make_absolute(result, Path.cwd())
    except FileNotFoundError as error:
        raise ConfigError(NO_WORKING_DIRECTORY) from error
    check_values(result)
    return result


def to_yaml(config: RunConfig) -> str:
    """Return the resolved configuration as YAML."""
    return str(OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True))


def to_plain(config: RunConfig) -> dict[str, Any]:
    """Return the configuration as nested dicts with enums by name."""
    plain = OmegaConf.to_container(OmegaConf.structured(config), resolve=True, enum_to_str=True)
    return cast(dict[str, Any], plain)


def _explain(error: Exception, overrides: Sequence[str]) -> str:
    """Turn a hydra or omegaconf error into a sentence with the key and the nearest valid name."""
    if isinstance(error, MissingConfigException):
        return missing_option((error.missing_cfg_file or "").removesuffix(".yaml"))
    if isinstance(error, OverrideParseException):
        return str(unreadable(str(error.override)))
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
    if full_key and full_key.startswith("hydra.") and is_unknown(cause, first_line):
        return f"Unknown key `{full_key}`. See the fields of its option in Hydra's groups."
    if full_key and is_unknown(cause, first_line):
        return f"Unknown key `{full_key}`.{nearest_key(full_key)}"
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
