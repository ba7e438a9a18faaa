"""What a process starts ends with it, however it ends."""

import os
import signal
import subprocess
import sys

import psutil

from tests.helpers.wait import LIMIT_S, wait_until
from trainer.dist import warden
from trainer.runtime import tied

PARENT = """
import signal, subprocess, sys
from trainer.runtime.tied import tied
command = ["sh", "-c", "echo $$ $PALIMPSEST_LAUNCHER; exec sleep 9999"]
subprocess.Popen(tied(command, signal.SIGKILL, launches_ranks=sys.argv[1] == "ranks"))
signal.pause()
"""


def start(kind):
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith("PALIMPSEST_LAUNCHER")
    }
    environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, kind], env=environ, stdout=subprocess.PIPE, text=True
    )
    return parent, [int(word) for word in parent.stdout.readline().split()]


def test_a_process_ends_when_the_one_that_started_it_is_killed():
    parent, (child,) = start("command")
    process = psutil.Process(child)
    is_there = process.is_running()
    parent.kill()
    parent.wait()
    wait_until(lambda: not process.is_running(), "the end of the tied process")
    assert is_there


def test_a_launcher_tells_ranks_its_number():
    parent, (child, told) = start("ranks")
    parent.kill()
    parent.wait()
    wait_until(lambda: not psutil.pid_exists(child), "the end of the launcher")
    assert child == told


def test_a_process_whose_parent_was_gone_before_it_asked_ends_at_once():
    words = [sys.executable, "-I", "-S", tied.__file__, "1", str(int(signal.SIGKILL)), "0", "sleep", "9999"]
    assert subprocess.run(words, timeout=LIMIT_S).returncode == -signal.SIGKILL


def test_launcher_and_warden_mean_the_same_variable():
    """Both are programs that import nothing of ours."""
    assert tied.LAUNCHER == warden.LAUNCHER
