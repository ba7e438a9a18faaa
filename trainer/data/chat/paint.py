"""Finds out where each character of a rendered conversation came from, by rendering it again in colours.

Every character of the conversation gets a code point of its own, out of those for private use, and the text is
rendered a second time. If that rendering, with the colours turned back, is the first one, then the colours tell of
each character which field of which turn it came from; what is missing was left out by the template. White space,
quotes and tags keep their own characters, so that a template trims, splits and escapes as before.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

COLOURS = [*range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE)]
TAG = re.compile(r"<[^<>\s]{1,40}>|\[/?[A-Z][A-Z_]{1,30}\]")
ESCAPED = frozenset("\"'\\<>&")
"""Left alone: JSON, Python and HTML write them differently inside strings."""
SPELLED = re.compile(r"\\U00(0f[0-9a-f]{4}|10[0-9a-f]{4})|\\u(db[89a-f][0-9a-f])\\u(d[c-f][0-9a-f]{2})")
"""Colours as Python and JSON spell characters that are not printable or not ASCII."""

Place = tuple[int, str]
"""Turn, or -1 for what all turns share, and the part of it."""


@dataclass(slots=True)
class Field:
    """One string of a conversation, and where the text has its characters."""

    place: Place
    text: str
    first: int
    """Number of its first painted character among all; of a conversation."""
    painted: list[int]
    """Indices of the characters that are painted."""
    found: list[int] = field(default_factory=list)
    """Where the text has each of them; -1 if it has not."""

    @property
    def num_lost(self) -> int:
        """Count the painted characters that the text has not, or not in their order."""
        lost, last = 0, -1
        for at in self.found:
            lost += at <= last
            last = max(last, at)
        return lost

    def extent(self, text: str) -> tuple[int, int] | None:
        """Return where the field stands in the text, with its quotes and tags at both ends; None if nowhere."""
        there = [at for at in self.found if at >= 0]
        if not there:
            return None
        start, end = min(there), max(there) + 1
        lead, trail = self.text[: self.painted[0]], self.text[self.painted[-1] + 1 :]
        for ending in (trail, trail.rstrip()):
            if text.startswith(ending, end):
                end += len(ending)
                break
        for beginning in (lead, lead.lstrip()):
            if text.endswith(beginning, 0, start):
                start -= len(beginning)
                break
        return start, end


class Painter:
    """Hands out colours for the characters numbered from `first` on; notes the fields that it saw."""

    def __init__(self, colours: list[int], first: int, only_letters: bool) -> None:
        self._colours = colours
        self._first = first
        self._only_letters = only_letters
        self.fields: list[Field] = []
        self.num_seen = 0
        self.origin: dict[int, str] = {}
        """The character behind each colour that was handed out."""

    def paint(self, text: str, place: Place) -> str:
        """Return the text in colours."""
        painted = list(_paintable(text, self._only_letters))
        self.fields.append(Field(place, text, self.num_seen, painted))
        chars = list(text)
        for number, index in enumerate(painted, self.num_seen - self._first):
            if 0 <= number < len(self._colours):
                self.origin[self._colours[number]] = chars[index]
                chars[index] = chr(self._colours[number])
        self.num_seen += len(painted)
        return "".join(chars)


def _paintable(text: str, only_letters: bool) -> Iterator[int]:
    kept: set[int] = set()
    for tag in TAG.finditer(text):
        kept.update(range(*tag.span()))
    chosen = [i for i, char in enumerate(text) if i not in kept and _takes_colour(char, only_letters)]
    # A field of nothing but signs or tags would not be found at all.
    yield from chosen or [i for i, char in enumerate(text) if not char.isspace()]


def _takes_colour(char: str, only_letters: bool) -> bool:
    if only_letters:
        return char.isascii() and char.isalnum()
    return char > " " and not char.isspace() and char not in ESCAPED


def trace(
    full: str, render: Callable[[Painter], str | None], only_letters: bool, used: set[str]
) -> list[Field] | None:
    """Return the fields of a conversation with the places of their characters in its rendering; None if unknown.

    Args:
        render: Renders the conversation with every field painted by the painter; None if that is refused.
        used: Characters of the conversation, which are no colours.
    """
    colours = COLOURS
    if max(used, default="") >= chr(COLOURS[0]):
        colours = [code for code in COLOURS if chr(code) not in used]
    fields: list[Field] = []
    first, num_seen = 0, 1
    while first < num_seen:  # once, unless there are more characters than colours
        painter = Painter(colours, first, only_letters)
        coloured = render(painter)
        if coloured is None:
            return None
        coloured = SPELLED.sub(_spelled, coloured)
        if coloured.translate(painter.origin) != full:
            return None
        fields = fields or [
            Field(f.place, f.text, f.first, f.painted, [-1] * len(f.painted)) for f in painter.fields
        ]
        _note(coloured, colours, first, painter, fields)
        first, num_seen = first + len(colours), painter.num_seen
    return fields


def _note(coloured: str, colours: list[int], first: int, painter: Painter, fields: list[Field]) -> None:
    firsts = [f.first for f in fields]
    for at, char in enumerate(coloured):
        code = ord(char)
        if code not in painter.origin:
            continue
        number = first + bisect_left(colours, code)
        index = bisect_left(firsts, number + 1) - 1
        # Empty fields begin where the next one does.
        owner = fields[index]
        where = number - owner.first
        if owner.found[where] < 0:
            owner.found[where] = at


def _spelled(match: re.Match[str]) -> str:
    if match.group(1):
        return chr(int(match.group(1), 16))
    high, low = int(match.group(2), 16), int(match.group(3), 16)
    return chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))
