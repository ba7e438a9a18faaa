"""`palimpsest COMMAND --help`: usage, then the keys that matter to the command, by section, as wide as the terminal."""

from __future__ import annotations

import dataclasses
import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator

from trainer.command.topics import TOPICS, Topic
from trainer.command.usage import COMMANDS, SUBCOMMANDS
from trainer.config.describe import KeyField, Section, fields, find_sections, sections
from trainer.config.options import shipped_options

LEAST_WIDTH, MOST_WIDTH = 60, 120
KEY_WIDTH = 34
RUN = "the run"
_END = re.compile(r"(?<=\.) +(?=[A-Z`])")


def width() -> int:
    """Return the columns to fill."""
    return max(LEAST_WIDTH, min(MOST_WIDTH, shutil.get_terminal_size((100, 24)).columns))


def command_help(command: str, shows_all: bool) -> str:
    """Return the help of a command, of one or two words.

    Args:
        shows_all: Every key of its sections with all that is said of it, and not those alone that people set.
    """
    topic = TOPICS[command]
    first, _, second = command.partition(" ")
    what = SUBCOMMANDS[first][second] if second else COMMANDS[first]
    lines = [
        *_wrapped(f"palimpsest {command}: {what}", "  "),
        "",
        *_wrapped(f"usage: {topic.usage}", " " * 7),
        "",
    ]
    for example in topic.examples:
        lines += _wrapped(f"  {example}", "      ")
    if topic.text:
        lines += ["", topic.text]
    if topic.groups:
        lines += ["", *_wrapped(f"groups: {', '.join(topic.groups)} (palimpsest explain GROUP)", "  ")]
    if shows_all:
        lines += [line for name in topic.sections for line in _whole_sections(name)]
    elif topic.keys:
        lines += ["", *key_rows(_own_fields(topic), is_whole=False)]
        shown = ", ".join(name or RUN for name in topic.sections)
        if shown:
            more = (
                f"Every key of {shown}: palimpsest {command} --help --all. One key: palimpsest explain KEY."
            )
            lines += ["", *_wrapped(more, "  ")]
    return "\n".join(lines)


def _own_fields(topic: Topic) -> Iterator[KeyField]:
    """Yield the keys of a topic, with the values of the experiment that the command runs where it has one."""
    words = (f"experiment={topic.experiment}",)
    values = {
        key: value for one in shipped_options() if one.word in words for key, value in one.values.items()
    }
    if "name" in values:
        values["run_dir"] = f"runs/{values['name']}"
    for key in topic.keys:
        yield dataclasses.replace(fields()[key], default=values.get(key, fields()[key].default))


def key_rows(found: Iterable[KeyField], is_whole: bool) -> Iterator[str]:
    """Yield lines for keys: the key with its default, then what it means, its unit, and its words."""
    for field in found:
        yield from _row(field, is_whole)


def section_head(section: Section) -> str:
    """Return the line above the keys of a section."""
    return f"{section.key or RUN}: {section.meaning}"


def _whole_sections(name: str) -> Iterator[str]:
    for section in [s for s in sections() if not s.key] if not name else find_sections(name):
        if section.fields:
            yield ""
            yield from _wrapped(section_head(section), "  ")
            yield from key_rows(section.fields, is_whole=True)


def _row(field: KeyField, is_whole: bool) -> Iterator[str]:
    told = field.meaning if is_whole else _in_short(field.meaning)
    if field.unit and field.unit.rstrip("s") not in told.lower():
        told = f"{told} [{field.unit}]"
    if field.choices:
        told = f"{told} {' | '.join(field.choices)}"
    left = f"  {field.key}={field.default_text}"
    if len(left) < KEY_WIDTH:
        yield from _wrapped(f"{left:<{KEY_WIDTH}}{told}", " " * KEY_WIDTH)
    else:
        yield left
        yield from _wrapped(" " * KEY_WIDTH + told, " " * KEY_WIDTH)


def _in_short(text: str) -> str:
    """Return the first sentence of a text, or as much of it as stands on two lines."""
    first = _END.split(text, maxsplit=1)[0]
    return textwrap.shorten(first, 2 * (width() - KEY_WIDTH) - 8, placeholder=" ...")


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        width(),
        subsequent_indent=indent,
        drop_whitespace=True,
        replace_whitespace=False,
        break_long_words=False,
        break_on_hyphens=False,
    )
