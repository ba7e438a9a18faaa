"""What is said to a person is printed as it is."""

import io

from rich.console import Console

from trainer.runtime.say import say


def test_brackets_and_long_lines_are_printed_as_they_are():
    shown = io.StringIO()
    text = "Set tune.target=[q_proj], see /a/folder/[red]/1.5" + " and so on" * 30
    say(Console(file=shown, width=40, force_terminal=True), text)
    assert shown.getvalue() == f"{text}\n"


def test_a_style_colours_the_whole_line():
    shown = io.StringIO()
    say(Console(file=shown, force_terminal=True, color_system="standard"), "1 of 2", "bold")
    assert shown.getvalue() == "\x1b[1m1 of 2\x1b[0m\n"
