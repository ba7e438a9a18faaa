"""Starting ranks of this machine: ports, and which processes are ranks."""

import os
import socket
import subprocess
import sys
import time

import pytest

from trainer.runtime.local import free_port, rank_processes

SLEEP = "import time; time.sleep(60)"
BESIDE = (
    f"import subprocess, sys; subprocess.run([sys.executable, '-c', '{SLEEP}'], env={{'LOCAL_RANK': '0'}})"
)


def test_a_free_port_can_be_listened_on_at_once():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))
        listener.listen()


def test_a_launcher_that_has_ended_has_no_ranks():
    assert rank_processes(2**22 + 1) == []


@pytest.mark.parametrize("is_launcher", [False, True], ids=["one rank alone", "below a launcher"])
def test_the_ranks_are_found_with_and_without_a_launcher(is_launcher):
    environment = {key: value for key, value in os.environ.items() if key != "LOCAL_RANK"}
    if not is_launcher:
        environment["LOCAL_RANK"] = "0"
    code = BESIDE if is_launcher else SLEEP
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    try:
        for _ in range(200):
            found = [rank.pid for rank in rank_processes(process.pid)]
            if found:
                break
            time.sleep(0.05)
        assert len(found) == 1
        assert (found[0] == process.pid) is not is_launcher
    finally:
        for rank in rank_processes(process.pid):
            rank.kill()
        process.kill()
        process.wait()
