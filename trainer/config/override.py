"""Words of a command line in Hydra's grammar: what they give, and how they become what its lexer can read.

With the store, the only place of the configuration that imports hydra.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, cast

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from trainer.config.entry import is_removal, key_of, unreadable
from trainer.config.exclusive import touches
from trainer.config.options import group_options
from trainer.config.yaml_text import MOST_DEPTH, measure
from trainer.errors import ConfigError

_PIECE = re.compile(
    r"""
    (?P<quoted> '(?:\\.|[^'\\])*' | "(?:\\.|[^"\\])*" )
    | (?P<sign> [,\[\](){}] | \s+ )
    | (?P<text> (?: \$\{[^{}]*\} | \\. | [^,\[\](){}\s\\] | [ \t]+(?=[^,\[\](){}\s'"]) | \\ )+ )
    """,
    re.VERBOSE,
)
_READ = re.compile(r"[A-Za-z0-9_/\-+.%*@?|:,]*")
"""What Hydra's lexer surely knows outside quotes."""
_CALL = re.compile(r"\w+\(")


def readable(word: str) -> str:
    """Return a word with quotes around what Hydra's lexer cannot read bare, such as é, # or ~; a sweep stays one."""
    key, equals, value = word.partition("=")
    _check_depth(word)
    if not equals or _READ.fullmatch(value) or _is_read(word):
        return word
    if "," not in value and not value.startswith(("[", "{", "'", '"')) and not _CALL.match(value):
        return f"{key}={_quoted(_unescaped(value))}"
    pieces, depth = [], 0
    for found in _PIECE.finditer(value):
        text = found[0]
        depth += (text == "{") - (text == "}")
        if found["text"] is None:
            pieces.append(text)
        elif depth:  # in a mapping a colon stands between key and value
            pieces += [one if one.startswith(":") else _safe(one) for one in re.split(r"(:(?:\s+|$))", text)]
        else:
            pieces.append(_safe(text))
    return f"{key}={''.join(pieces)}"


def _check_depth(word: str) -> None:
    """Raise where brackets stand within each other deeper than Python and Hydra can follow."""
    depth = 0
    for sign in re.findall(r"[\[\]{}()]", re.sub(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"", "", word)):
        depth += 1 if sign in "[{(" else -1
        if depth > MOST_DEPTH:
            raise ConfigError(
                f"`{key_of(word)}` must hold at most {MOST_DEPTH} brackets within each other, but is '{word[:60]}...' "
                "instead. Write a flat value."
            )


def _is_read(word: str) -> bool:
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    return True


def _safe(text: str) -> str:
    """Return a text between signs, in quotes where it needs them."""
    if _READ.fullmatch(re.sub(r"\$\{[^{}]*\}|[=\s]", "", text)):
        return text
    return _quoted(_unescaped(text))


def _unescaped(text: str) -> str:
    return re.sub(r"\\([\\()\[\]{}:=, \t])", r"\1", text)


def _quoted(text: str) -> str:
    escaped = re.sub(r"(\\+)(?=$|')", r"\1\1", text).replace("'", "\\'")
    return f"'{escaped}'"


def _parsed(word: str) -> Override:
    return OverridesParser.create().parse_override(readable(word))


def typed(overrides: Sequence[str]) -> list[str]:
    """Return the keys, of those that exclude each other, that words give a value to; null leaves open."""
    return [
        key for word in overrides if touches(key_of(word)) for key, value in _given(word) if value is not None
    ]


def typed_keys(overrides: Sequence[str]) -> frozenset[str]:
    """Return every key that words give, null too."""
    return frozenset(key for word in overrides for key, _ in _given(word))


def _given(word: str) -> Iterator[tuple[str, Any]]:
    """Yield what one word gives; one such as model=tiny, which names an option, gives the key `model`."""
    key = key_of(word)
    if "=" not in word or word.startswith("~"):
        return
    if is_swept(word):
        return
    value: Any = OmegaConf.to_container(
        read_entries([word])
    )  # references to other keys stay as they are written
    for part in key.split("."):
        value = value[part]
    yield from _leaves(key, value)


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name!s}", inner)
    else:
        yield key, value


def is_swept(override: str) -> bool:
    """Tell whether an override gives several values, in Hydra's words; what cannot be read gives one."""
    try:
        return _parsed(override).is_sweep_override()
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
        if word.startswith("~"):
            raise ConfigError(
                f"`{key}` must be given, but '{word}' would remove it instead. Set another value, or leave it out."
            )
        if "=" not in word or not all(part.strip() for part in key.split(".")):
            raise unreadable(word)
        one = OmegaConf.create()
        try:
            if value.startswith(("{", "[")):
                OmegaConf.update(one, key, _parsed(word).value())
            else:
                measure(value)
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


def take_out(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """Remove the entries of mappings that words such as ~gate.sets.general name, in place; return the other words.

    Raises:
        ConfigError: There is no such entry, or another word gives it.
    """
    others = [word for word in overrides if not is_removal(word)]
    for word in (word for word in overrides if is_removal(word)):
        key = key_of(word)
        mapping, _, name = key.rpartition(".")
        entries = OmegaConf.select(config, mapping)
        if name not in entries:
            known = ", ".join(map(str, entries)) or "none"
            raise ConfigError(
                f"`{key}` must be an entry of `{mapping}` ({known}) to be removed, but is none instead. "
                f"Leave {word} out."
            )
        given = next((other for other in others if f"{key_of(other)}.".startswith(f"{key}.")), None)
        if given is not None:
            raise ConfigError(
                f"`{key}` must be given or removed, but the command line has both '{given}' and '{word}' instead. "
                "Leave one out."
            )
        del entries[name]
    return others


def check_word(word: str) -> None:
    """Refuse what Hydra would answer in its own words: no key, a package, or a group that is given no name."""
    try:
        parsed = _parsed(word)
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
        none = "Set model=NAME." if group == "model" else none
        raise ConfigError(
            f"`{group}` must be the name of an option, but is {word.partition('=')[2]} instead. {none} Options: "
            f"{', '.join(groups[group])}."
        )
