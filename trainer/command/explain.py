"""`palimpsest explain`: one key, the keys of a section, the options of a group, or one option."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from trainer.command.help_page import key_rows, section_head, width
from trainer.config.describe import (
    KeyField,
    as_word,
    find_field,
    find_sections,
    nearest_keys,
    schema_key,
    sections,
)
from trainer.config.exclusive import partners
from trainer.config.foreign import key_for
from trainer.config.options import Option, group_options, own_options, searchpath_folders, shipped_options
from trainer.errors import ConfigError

LABEL = 9


def explain(words: Sequence[str]) -> str:
    """Return what there is to say of the first word; the others are words of train, under which a key has a value.

    Raises:
        ConfigError: It is no key, section, group or option, or the other words cannot be composed.
    """
    if not words:
        return _index()
    asked, others = words[0], words[1:]
    options = [*_own(others), *shipped_options()]
    group, equals, name = asked.partition("=")
    if equals:
        found = [option for option in options if option.word == asked]
        if found:
            return "\n".join(_of_option(found[0], options))
        # What a person would type of a key is explained as the key.
        asked = group if group not in group_options() else asked
    field = find_field(asked)
    if field is not None:
        return "\n".join(_of_field(field, asked, options, others))
    within, listed = find_sections(asked), [option for option in options if option.group == asked]
    if within or listed:
        lines = [line for section in within for line in _of_section(section.key)]
        return "\n".join([*lines, *_of_group(asked, listed)])
    raise _unknown(asked, group, name, options)


def _unknown(asked: str, group: str, name: str, options: Sequence[Option]) -> ConfigError:
    words = tuple(option.word for option in options)
    near = nearest_keys(asked, (*group_options(), *words)) if not name or group not in group_options() else []
    near = near or nearest_keys(asked, words)
    near = [ours] if (ours := key_for(asked)) is not None else near
    meant = f" Did you mean {' or '.join(f'`{one}`' for one in near)}?" if near else ""
    return ConfigError(
        f"`{asked}` must be a key, a section, a group or one of its options, but is none of them instead.{meant} "
        "`palimpsest explain` lists sections and groups."
    )


def _index() -> str:
    lines = ["sections (palimpsest explain SECTION):"]
    for section in sections():
        if section.key and "." not in section.key:
            lines += _said(section.key, section.meaning, 11)
    lines += ["", "the run itself:", *key_rows(sections()[0].fields, is_whole=False)]
    lines += ["", "groups (palimpsest explain GROUP):"]
    for group, names in group_options().items():
        lines += _said(group, ", ".join(name for name in names if name != "none"), 11)
    return "\n".join(lines)


def _of_section(key: str) -> Iterator[str]:
    for section in (one for one in sections() if one.key == key):
        yield from textwrap.wrap(section_head(section), width(), subsequent_indent="  ")
        yield from key_rows(section.fields, is_whole=True)
        yield ""


def _of_group(group: str, listed: Sequence[Option]) -> Iterator[str]:
    if not listed:
        return
    yield f"options of the group {group} (palimpsest explain {group}=OPTION):"
    for option in listed:
        yield from _said(option.name, option.purpose, 24)


def _of_option(option: Option, options: Sequence[Option]) -> Iterator[str]:
    yield from textwrap.wrap(f"{option.word}: {option.purpose}".rstrip(": "), width(), subsequent_indent="  ")
    said: set[str] = set()
    for number, one in enumerate(_lineage(option, options)):
        settings = {
            key: as_word(value) for key, value in (one.choices | one.values).items() if key not in said
        }
        if number and settings:
            yield f"  from {one.word}:"
        for key, value in settings.items():
            yield f"  {'  ' if number else ''}{key}={value}"
        said |= set(settings)


def _lineage(option: Option, options: Sequence[Option]) -> Iterator[Option]:
    """Yield an option and those that it goes on from; what an earlier one says counts."""
    yield option
    for name in reversed(option.parents):
        parent = next((one for one in options if (one.group, one.name) == (option.group, name)), None)
        if parent is not None:
            yield from _lineage(parent, options)


def _of_field(field: KeyField, asked: str, options: Sequence[Option], words: Sequence[str]) -> Iterator[str]:
    yield asked
    yield from textwrap.wrap(field.meaning, width(), initial_indent="  ", subsequent_indent="  ")
    yield ""
    yield from _said("type", field.kind, LABEL)
    if field.unit:
        yield from _said("unit", field.unit, LABEL)
    yield from _said("default", field.default_text, LABEL)
    for choice, meaning in field.choices.items():
        yield from _said("", f"{choice}: {meaning}", LABEL)
    beside = partners(field.key)
    if beside:
        yield from _said("instead", f"of {', '.join(beside)}: one of them counts", LABEL)
    label = "set by"
    for option in options:
        for key, value in option.values.items():
            if key == asked or schema_key(key) == field.key:
                name = f" ({key})" if key != asked and key != field.key else ""
                yield from _said(label, f"{option.word}: {as_word(value)}{name}", LABEL)
                label = ""
    if words:
        yield from _said("here", f"{_composed(asked, words)}   with {' '.join(words)}", LABEL)


def _composed(key: str, words: Sequence[str]) -> str:
    """Return the value that a key has under the words."""
    from trainer.config.store import compose_config, to_plain

    value: object = to_plain(compose_config(words))
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return "not there: no entry of that name"
        value = value[part]
    return as_word(value)


def _own(words: Sequence[str]) -> list[Option]:
    """Return the options in the folders that hydra.searchpath names among the words."""
    return [option for folder in searchpath_folders(words) for option in own_options(folder)]


def _said(label: str, text: str, indent: int) -> list[str]:
    lead = f"  {label:<{indent}}"
    if len(label) >= indent:
        lead = f"  {label} "
    return textwrap.wrap(
        lead + text, width(), subsequent_indent=" " * (indent + 2), break_on_hyphens=False
    ) or [lead.rstrip()]
