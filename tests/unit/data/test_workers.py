"""Processes that tokenise end with the one that they work for, however it ends."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from tests.helpers.wait import wait_until

PREPARING = """
import multiprocessing, signal
from trainer.config.data import SourceConfig
from trainer.data.tokens.tokenise import encode_parallel
from trainer.data.types import RowBatch

def batches():
    for _ in range(2):
        yield RowBatch("file", "line", [], [])
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    signal.pause()

for _ in encode_parallel(batches(), SourceConfig(), False, object, 2):
    pass
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_no_worker_is_left_of_a_preparation_that_is_killed(number):
    """They waited for work for ever."""
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(
        [sys.executable, "-c", PREPARING], env=environ, stdout=subprocess.PIPE, text=True
    )
    workers = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
    try:
        assert len(workers) == 2 and all(worker.is_running() for worker in workers)
        process.send_signal(number)
        process.wait()
    finally:
        process.kill()
    wait_until(
        lambda: not any(w.is_running() and w.status() != psutil.STATUS_ZOMBIE for w in workers), "their end"
    )
