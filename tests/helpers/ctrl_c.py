"""Ctrl-C for what a test starts."""

import signal


def listen_to_ctrl_c() -> None:
    """Undo what a shell does to what it starts in the background, so also to tests/run.sh and these tests.

    It ignores SIGINT there, and a shell script cannot listen to what was ignored when it began.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
