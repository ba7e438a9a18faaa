"""What a library prints, logs or warns is kept from the terminal and ends up in the first log file."""

import logging
import sys
import types
import warnings

import pytest

from trainer.runtime.libraries import SHOW, libraries_held
from trainer.runtime.log import setup_logging, setup_messages


@pytest.fixture(autouse=True)
def logging_as_before():
    root = logging.getLogger()
    before, level, ours = list(root.handlers), root.level, logging.getLogger("trainer").level
    yield
    for handler in [handler for handler in root.handlers if handler not in before]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)
    logging.getLogger("trainer").setLevel(ours)


def module(name, source):
    """Return a module of that name, as if it were installed."""
    made = types.ModuleType(name)
    exec(source, made.__dict__)
    return made


PRINTS = """
import sys, logging, warnings
def speak():
    print("Invalidate trace cache", "@ step 396")
    print("half a ", end="")
    print("line")
    sys.stderr.write("on standard error\\n")
    warnings.warn("old name", DeprecationWarning, stacklevel=1)
    logging.StreamHandler(sys.stdout).emit(logging.LogRecord("x", 30, "", 0, "by its own handler", None, None))
"""


def test_a_library_is_not_heard_and_everybody_else_is(tmp_path, capsys):
    library, other = module("deepspeed.runtime.zero.some", PRINTS), module("somebody", PRINTS)
    with libraries_held(), warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        library.speak()
        print("our line")
        assert capsys.readouterr() == ("our line\n", "")
        setup_logging(0, 1, tmp_path)
        other.speak()
        library.speak()
    out, err = capsys.readouterr()
    assert out.splitlines() == ["Invalidate trace cache @ step 396", "half a line", "by its own handler"]
    assert err == "on standard error\n"
    kept = (tmp_path / "rank-0.log").read_text()
    for line in (
        "Invalidate trace cache @ step 396",
        "half a line",
        "on standard error",
        "by its own handler",
    ):
        assert kept.count(f" deepspeed: {line}") == 2, "held before there was a file, and written after"
    assert kept.count("DeprecationWarning: old name") == 3


def test_streams_and_logging_are_as_before_afterwards(capsys):
    streams, handlers = (sys.stdout, sys.stderr), list(logging.getLogger().handlers)
    with pytest.raises(ZeroDivisionError), libraries_held():
        assert sys.stdout is not streams[0] and sys.stdout.isatty() == streams[0].isatty()
        print(1 / 0)
    assert (sys.stdout, sys.stderr) == streams and logging.getLogger().handlers == handlers


def test_our_warnings_are_shown_where_there_is_no_rank(capsys):
    with libraries_held():
        setup_messages(rank=0)
        logging.getLogger("trainer.data").warning("ours")
        logging.getLogger("transformers.modeling").warning("theirs")
        logging.getLogger("transformers.modeling").error("broken")
    assert capsys.readouterr().err.splitlines() == ["ours", "broken"]


def test_a_person_can_ask_for_all_of_it(monkeypatch, capsys):
    monkeypatch.setenv(SHOW, "1")
    with libraries_held():
        module("torch.some", "def speak():\n    print('heard')").speak()
    assert capsys.readouterr().out == "heard\n"
