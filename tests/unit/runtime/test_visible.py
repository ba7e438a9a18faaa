"""Text of others on a terminal."""

import io
import logging

from rich.console import Console

from trainer.runtime.log import setup_messages
from trainer.runtime.say import say
from trainer.runtime.visible import visible


def test_only_what_a_terminal_would_act_on_is_written_out():
    assert visible("a\tb\n\u00e9 \u4f60\u597d \\x1b") == "a\tb\n\u00e9 \u4f60\u597d \\x1b"
    assert visible("\x1b[2J\r\x7f\x85\u2066") == r"\x1b[2J\x0d\x7f\x85\u2066"


def test_sentences_and_log_lines_quote_nothing_that_acts(capsys):
    stream = io.StringIO()
    say(Console(file=stream), "row \x1b[31mred")
    setup_messages(0)
    logging.getLogger("trainer.x").warning("row \x1b[31mred")
    for shown in (stream.getvalue(), capsys.readouterr().err):
        assert shown == "row \\x1b[31mred\n"
