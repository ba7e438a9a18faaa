"""Lines of libraries - logged, warned or printed - are kept from the terminal, and held until there is a log file.

A library prints where it wants to: `Invalidate trace cache @ step 396` of DeepSpeed is a bare print to standard output,
among the metrics lines. Who prints is seen from the calling module.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import types
from collections import deque
from collections.abc import Iterator
from typing import Any, TextIO

SHOW = "PALIMPSEST_LIBRARY_LINES"
"""Variable that shows them on the terminal as well: anything but empty or 0."""
_LIBRARIES = frozenset(
    (
        *("accelerate", "bitsandbytes", "datasets", "deepspeed", "flash_attn", "huggingface_hub", "hydra"),
        *(
            "liger_kernel",
            "lm_eval",
            "omegaconf",
            "peft",
            "tokenizers",
            "torch",
            "torchao",
            "transformers",
            "triton",
        ),
    )
)
_BETWEEN = frozenset(("logging", "rich", "warnings", "contextlib"))
"""What writes for whoever calls it."""
_MAX_HELD = 10_000

_held: deque[logging.LogRecord] = deque(maxlen=_MAX_HELD)


def shows_libraries() -> bool:
    """Tell whether a person wants to see everything."""
    return os.environ.get(SHOW, "") not in ("", "0")


@contextlib.contextmanager
def libraries_held() -> Iterator[None]:
    """Keep lines of libraries from the terminal inside the block."""
    if shows_libraries():
        yield
        return
    handler = _Holder()
    root, streams = logging.getLogger(), (sys.stdout, sys.stderr)
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    sys.stdout, sys.stderr = (_OthersOnly(stream) for stream in streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        logging.captureWarnings(False)
        root.removeHandler(handler)
        root.setLevel(level)
        _held.clear()


def take_held() -> list[logging.LogRecord]:
    """Return what was held so far, once."""
    records = list(_held)
    _held.clear()
    return records


class _Holder(logging.Handler):
    """Remembers records until a file takes them over."""

    def emit(self, record: logging.LogRecord) -> None:
        _held.append(record)


class _OthersOnly:
    """A stream that logs what libraries print and passes on all else."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: dict[str, str] = {}

    def write(self, text: str) -> int:
        """Write, or log whole lines of a library."""
        library = _library(sys._getframe(1))
        if library is None:
            return self._stream.write(text)
        *lines, self._lines[library] = (self._lines.get(library, "") + text).split("\n")
        for line in filter(str.strip, lines):
            logging.getLogger(library).info("%s", line)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _library(frame: types.FrameType | None) -> str | None:
    """Return the library that a frame writes for; None for anyone else."""
    while frame is not None:
        name = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if name not in _BETWEEN:
            return name if name in _LIBRARIES else None
        frame = frame.f_back
    return None
