"""One rule for every text of a configuration: no control characters. Pure.

Texts become lines of job scripts, files of variables, logs and pages; what ends a line there begins another one.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterator
from typing import Any

from trainer.config.rule import Problem, must, told_together

LINES = frozenset({"\n", "\t"})
MAY_HAVE_LINES = (
    *("cluster.setup", "model.new_tokens", "synthetic.system", "synthetic.raft.prompt"),
    *("synthetic.sample.instruction", "synthetic.judge.question"),
)
"""Keys whose texts are lines of a shell on purpose, or never reach one: words of a tokenizer, what a model is asked."""
_CONTROL = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Of Unicode: control, half of a pair, ends of a line and of a paragraph."""
_TURNING = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that show a text in another order than it is read in."""


def is_control(character: str) -> bool:
    """Tell whether a character ends lines, moves a cursor, or turns the order of what is shown."""
    return unicodedata.category(character) in _CONTROL or character in _TURNING


def text_problems(section: Any, key: str = "") -> Iterator[Problem]:
    """Yield a problem for every text with control characters, names of entries too.

    Args:
        section: The configuration, a section of it, or a value.
        key: Where it stands, dotted.
    """
    if isinstance(section, str):
        allowed = LINES if key.startswith(MAY_HAVE_LINES) else frozenset()
        if any(is_control(one) and one not in allowed for one in section):
            rule = "a text without control characters" + (" but ends of lines and tabs" if allowed else "")
            yield must(key, rule, section, "Take them out.")
    elif dataclasses.is_dataclass(section) or isinstance(section, dict):
        for name, value in (section if isinstance(section, dict) else vars(section)).items():
            if any(map(is_control, str(name))):
                yield must(key, "a mapping of names without control characters", str(name), "Take them out.")
            else:
                yield from text_problems(value, f"{key}.{name}" if key else str(name))
    elif isinstance(section, list | tuple):
        for value in section:
            yield from text_problems(value, key)


def check_texts(config: Any) -> None:
    """Raise when a text of the configuration has control characters.

    Raises:
        ConfigError: Lists every such key.
    """
    problems = [*text_problems(config)]
    if problems:
        raise told_together([found.sentence for found in problems])
