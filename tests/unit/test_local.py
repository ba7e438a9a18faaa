"""Starting ranks of this machine: ports, and which processes are ranks."""

import os
import socket
import subprocess
import sys
import time

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


def test_the_ranks_below_a_launcher_are_found():
    environment = {key: value for key, value in os.environ.items() if key != "LOCAL_RANK"}
    process = subprocess.Popen([sys.executable, "-c", BESIDE], env=environment)
    found = []
    try:
        for _ in range(200):
            found = rank_processes(process.pid)
            if found:
                break
            time.sleep(0.05)
        assert len(found) == 1 and found[0].pid != process.pid
    finally:
        for rank in found:
            rank.kill()
        process.kill()
        process.wait()
