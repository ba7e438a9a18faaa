"""Processes that a library starts end with ours, even when nobody could say goodbye."""

import os
import subprocess
import sys

import psutil

from tests.helpers.wait import wait_until

PARENT = """
import subprocess, sys, time
from trainer.runtime.guard import guarded
with guarded():
    inside = subprocess.Popen(["sleep", "9999"], start_new_session=True)
outside = subprocess.Popen(["sleep", "9999"])
print(inside.pid, outside.pid, flush=True)
time.sleep(9999)
"""


def is_alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_killed_process_takes_what_it_guards_with_it_and_nothing_else():
    environ = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
    parent = subprocess.Popen([sys.executable, "-c", PARENT], env=environ, stdout=subprocess.PIPE, text=True)
    inside, outside = map(int, parent.stdout.readline().split())
    try:
        assert is_alive(inside) and is_alive(outside)
        parent.kill()
        parent.wait()
        wait_until(lambda: not is_alive(inside), "the end of the guarded process after its parent's")
        assert is_alive(outside)
    finally:
        psutil.Process(outside).kill()
