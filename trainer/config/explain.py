"""What OmegaConf says of a value that does not fit, in our words."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from trainer.config.describe import as_word, find_field, known_keys
from trainer.config.entry import key_of, mapping_keys
from trainer.config.foreign import HINTS, OPTIONS, WORDS, key_for
from trainer.config.options import OWN, group_options

_TYPES = {
    "Integer": "a whole number",
    "Float": "a number",
    "Boolean": "true or false",
    "bool": "true or false",
}
_EXAMPLES = {"Integer": "4", "Float": "0.1", "Boolean": "true", "bool": "true"}
"""Values of those types, for keys that are null by default."""
_UNITS = {"_gib": "gib|gb|g", "_gb": "gb|g", "_min": "minutes?|min|m", "_s": "seconds?|sec|s"}
"""What people write behind a number, by the end of the key that has that unit."""
_WHOLE = re.compile(r"\d{1,15}\.0")
"""A whole number as YAML reads 1e9."""
_SET = "a variable of the environment that is set"
_WRONG = (
    (re.compile(r"Value '(?P<value>.*)' of type '.*' could not be converted to (?P<kind>\w+)"), ""),
    (re.compile(r"Value '(?P<value>.*)' is not a valid (?P<kind>bool)"), ""),
    (re.compile(r"Cannot assign (?P<type>\w+) to Dict"), "a mapping"),
    (re.compile(r"Merge error: (?P<type>\w+) is not a subclass of \w+. value: (?P<value>.*)"), "a mapping"),
    (
        re.compile(r"Invalid type assigned: (?P<type>\w+) is not a subclass of \w+. value: (?P<value>.*)"),
        "a mapping",
    ),
    (re.compile(r"Invalid value assigned: (?P<type>\w+) is not a ListConfig"), "a list"),
    (re.compile(r"Cannot merge DictConfig with ListConfig"), "a list"),
    (re.compile(r"Cannot merge ListConfig with DictConfig"), "a mapping"),
    (re.compile(r"Cannot convert '(?P<type>\w+)' to string: '(?P<value>.*)'"), "text"),
    (re.compile(r"Interpolation key '(?P<value>.*)' not found"), "a value, or ${KEY} of a key that there is"),
    (re.compile(r"Environment variable '(?P<value>.*)' not found"), _SET),
    (re.compile(r"does not support deletion"), "left as it is"),
    (re.compile(r"An item is already at"), "given without Hydra's '+', since it is there"),
    (re.compile(r"Could not override '(?P<value>.*)'"), "a key or a group"),
)
_NULL = re.compile(r"[Ff]ield '.*' is not Optional|Incompatible value 'None' for field of type")
_CHOICE = re.compile(r"Invalid value '(?P<value>.*)', expected one of \[(?P<words>.*)\]")
_SEVERAL = re.compile(r"Value (?P<value>.*) \(\w+\) is not a valid input for <enum")
MAX_NEAR = 4
"""Options that are named where several are as like the one asked for."""
MAX_LISTED = 12
"""Keys of a section that are named where none is like the one asked for."""
_NAMES = {
    "int": "a number",
    "float": "a number",
    "str": "text",
    "dict": "a mapping",
    "DictConfig": "a mapping",
}
_NAMES |= {"list": "a list", "ListConfig": "a list", "bool": "true or false", "NoneType": "null"}


def wrong_value(key: str, message: str, given: str | None) -> str | None:
    """Return a sentence about a value that does not fit its key; None where the message is another.

    Args:
        message: The first line of what OmegaConf says.
        given: The override that gave it, if one did.
    """
    if _NULL.search(message):
        return not_null(key)
    choice = _CHOICE.search(message)
    if choice is not None:
        words = choice["words"].split(", ")
        meant = WORDS.get(key.rpartition(".")[2], {}).get(choice["value"].lower())
        return (
            f"`{key}` must be one of {choice['words']}, but is '{choice['value']}' instead."
            f"{f' Did you mean `{meant}`?' if meant else nearest(choice['value'], words) or _usual(key)}"
        )
    if (several := _SEVERAL.search(message)) is not None:
        field = find_field(re.sub(r"\[\d+\]$", "", key))
        kind = "one value" if field is None else field.kind
        return f"`{key}` must be {kind}, but is {several['value']} instead.{_usual(key)}"
    for pattern, rule in _WRONG:
        found = pattern.search(message)
        if found is None:
            continue
        named = found.groupdict()
        if not rule:
            kind = named["kind"]
            return (
                f"`{key}` must be {_TYPES.get(kind, kind)}, but is '{named['value']}' instead."
                f"{_usual(key, kind, named['value'])}"
            )
        value = named.get("value")
        if value is None and given is not None:
            value = given.partition("=")[2] or given
        if value is None:
            return f"`{key}` must be {rule}, but is {_NAMES.get(named.get('type') or '', 'something else')} instead."
        fix = f" Export {value}." if rule == _SET else _usual(key, rule, value) if rule == "a list" else ""
        return f"`{key}` must be {rule}, but is '{value}' instead.{fix}"
    return None


def not_null(key: str) -> str:
    """Return the sentence about a key that is given null and may not be: what it may be, and what to write."""
    found, above = find_field(key), find_field(key.rpartition(".")[0])
    if found is not None:
        kind = found.kind
        article = "a " if kind.startswith(("whole", "number", "list", "mapping")) else ""
        default = found.default
        fix = f"Set {shlex.quote(f'{key}={as_word(default)}')}, or leave it out."
        fix = f"Set {key}=VALUE." if default in (None, dataclasses.MISSING) else fix
        return f"`{key}` must be {article}{kind}, but is null instead. {fix}"
    if above is not None and above.kind.endswith(("values", "texts", "numbers")):
        return f"`{key}` must be one value, but is null instead. Set {key}=VALUE, or leave it out."
    return f"`{key}` must be a mapping of keys to values, but is null instead. Leave it out for the default."


def _usual(key: str, kind: str = "", value: str = "") -> str:
    """Return the fix of a value that does not fit: the default of its key, or one that would fit."""
    key = re.sub(r"\[\d+\]$", "", key)
    found, (above, _, name) = find_field(key), key.rpartition(".")
    of_mapping = find_field(above) if found is None and above else None
    if found is None and (of_mapping is None or not isinstance(of_mapping.default, dict)):
        return ""
    default = of_mapping.default.get(name) if of_mapping is not None else found and found.default
    if value == "auto" and found is not None and found.is_optional:
        return f" Set {key}=null."
    if kind == "a list" and not default:
        return f" Set {key}=[{value}]."
    if kind == "Integer" and _WHOLE.fullmatch(value):
        return f" Set {key}={int(float(value))}."
    if (near := _number_in(key, kind, value)) is not None:
        return f" Set {key}={near}."
    if default not in (None, dataclasses.MISSING):
        return f" Set {shlex.quote(f'{key}={as_word(default)}')}, or leave it out."
    if kind not in _EXAMPLES:
        return f" Set {key}=null, or leave it out."
    return f" Set {key}={_EXAMPLES[kind]} or such, or leave it out."


def _number_in(key: str, kind: str, value: str) -> str | None:
    """Return the number that a value means which has the unit of its key, marks of thousands, or a part of a whole."""
    unit = next((words for end, words in _UNITS.items() if key.endswith(end)), "")
    found = re.fullmatch(rf"(\d[\d,_]*(?:\.\d+)?) ?(?:{unit})", value, re.IGNORECASE)
    if found is None or kind not in ("Integer", "Float"):
        return None
    number = float(re.sub("[,_]", "", found[1]))
    return f"{math.ceil(number)}" if kind == "Integer" else f"{number:.15g}"


def nearest(name: str, candidates: list[str]) -> str:
    """Return a question that names the candidate most like a name; nothing where none is."""
    matches = difflib.get_close_matches(name, candidates, n=1, cutoff=0.5)
    if not matches:
        leaf = name.rsplit(".", 1)[-1]
        by_leaf = {candidate.rsplit(".", 1)[-1]: candidate for candidate in candidates}
        near = difflib.get_close_matches(leaf, list(by_leaf), n=1, cutoff=0.6)
        matches = [by_leaf[near[0]]] if near else []
    return f" Did you mean `{matches[0]}`?" if matches else ""


def nearest_options(name: str, options: Sequence[str]) -> str:
    """Return a question that names the options most like a name that may be only the beginning of one."""
    whole = {one: _edits(name, one) for one in options}
    begun = {one: min(_edits(name, one[:end]) for end in range(1, len(one) + 1)) for one in options}
    least = min(begun.values(), default=len(name))
    if 2 * least >= len(name):
        return nearest(name, list(options))
    same = [one for one in options if whole[one] == least]
    found = same or sorted((one for one in options if begun[one] == least), key=lambda one: whole[one])
    *first, last = [f"`{one}`" for one in found[:MAX_NEAR]]
    return f" Did you mean {', '.join(first)} or {last}?" if first else f" Did you mean {last}?"


def _edits(one: str, other: str) -> int:
    """Return how many letters must be added, left out or changed to make one word of the other (Levenshtein)."""
    row = list(range(len(other) + 1))
    for at, letter in enumerate(one, 1):
        before, row[0] = row[0], at
        for place, target in enumerate(other, 1):
            before, row[place] = (
                row[place],
                min(row[place] + 1, row[place - 1] + 1, before + (letter != target)),
            )
    return row[-1]


def nearest_key(key: str) -> str:
    """Return what to try instead of a key that is not there: one like it, or all keys of its section.

    For a name of another trainer's it is the key that is here in its place.
    """
    known = [*known_keys(), *group_options()]
    section, _, leaf = key.rpartition(".")
    ours = key_for(key)
    if ours is not None:
        others = [f"`{name}`" for name in known if name.rpartition(".")[2] == leaf]
        hint = f" {HINTS[ours]}" if ours in HINTS else ""
        return f" Did you mean {' or '.join([f'`{ours}`', *others])}?{hint}"
    beside = [name.rpartition(".")[2] for name in known if section and name.rpartition(".")[0] == section]
    near = difflib.get_close_matches(leaf, beside, n=1, cutoff=0.6)
    if near:
        return f" Did you mean `{section}.{near[0]}`?"
    if not 0 < len(beside) <= MAX_LISTED:
        return nearest(key, known)
    elsewhere = [name for name in known if name.rpartition(".")[2] == leaf]
    question = f" Did you mean `{elsewhere[0]}`?" if elsewhere else ""
    return f"{question} Keys of `{section}`: {', '.join(beside)}."


def unknown_key(key: str, overrides: Sequence[str]) -> str:
    """Return the sentence about a key that is not there, or about an entry that is given inside a whole section."""
    if key.startswith("hydra."):
        return f"Unknown key `{key}`. See the fields of its option in Hydra's groups."
    mapping = next((one for one in mapping_keys() if key.startswith(f"{one}.")), "")
    section = next((key_of(word) for word in overrides if mapping.startswith(f"{key_of(word)}.")), None)
    if section is None:
        return f"Unknown key `{key}`.{nearest_key(key)}"
    return (
        f"`{mapping}` must be given by its own name, but stands inside {section}={{...}} instead. Write "
        f"{mapping}={{{key.removeprefix(mapping)[1:]}: ...}}."
    )


def is_unknown(cause: BaseException, message: str) -> bool:
    """Tell whether an error is about a key that is not there."""
    name = type(cause).__name__
    return (
        name in ("ConfigAttributeError", "ConfigKeyError")
        or "not in" in message
        or "does not exist" in message
    )


def override_key(message: str, overrides: Sequence[str]) -> str | None:
    """Return the key among the overrides that a message names."""
    return next((key for key in map(key_of, overrides) if f"'{key}'" in message), None)


def missing_option(missing: str) -> str:
    """Return a sentence about a file of a group, as GROUP/OPTION, that is not there."""
    group, _, option = missing.rpartition("/")
    groups = group_options()
    if group in groups and (folder := _own_folder(group, option)) is not None:
        word = shlex.quote(f"hydra.searchpath=[file://{folder}]")
        return (
            f"`{group}={option}` must be given with the folder that it lies in, but {folder / group / option}.yaml is "
            f"looked for among what ships instead. Add {word}"
        )
    if group in groups:
        meant = OPTIONS.get(group, {}).get(option.lower())
        near = nearest_options(option, [*groups[group], *_own_options(group)])
        return (
            f"`{group}={option}` is not an option of the group `{group}`."
            f"{f' Did you mean `{meant}`?' if meant else near} Options: {', '.join(groups[group])}."
        )
    if group.startswith("hydra/"):
        return (
            f"`{group}={option}` is not an option of Hydra's group `{group}`, or its plugin is not installed."
        )
    return f"Config `{missing}` was not found.{nearest(group or option, list(groups))}"


def _own_options(group: str) -> list[str]:
    """Return the names of a person's own options of a group, where `palimpsest init` writes them."""
    return [file.stem for file in sorted(Path(OWN, group).glob("*.yaml"))]


def _own_folder(group: str, option: str) -> Path | None:
    """Return the folder of a person's own options here that holds one; None where none does."""
    try:
        here = Path.cwd()
    except FileNotFoundError:
        return None
    folders = (here / OWN, here)
    return next((one for one in folders if (one / group / f"{option}.yaml").is_file()), None)


def nearest_group(message: str, overrides: Sequence[str]) -> str:
    """Return a question about the first override, of a group or of the run itself, that a message names."""
    for key in map(key_of, overrides):
        if key in message and "." not in key:
            if key_for(key) is not None:
                return nearest_key(key)
            return nearest(key, [*group_options(), *known_keys()])
    return ""
