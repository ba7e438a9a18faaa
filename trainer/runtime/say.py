"""How a sentence is printed for a person, and for who searches logs."""

from __future__ import annotations

from rich.console import Console

from trainer.runtime.visible import visible


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print a text as it is: brackets are no markup, numbers are not coloured, lines are not broken at the width.

    Only what a terminal would act on is written out.
    """
    console.print(visible(text), style=style, markup=False, highlight=False, soft_wrap=True)
