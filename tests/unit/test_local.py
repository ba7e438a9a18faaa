"""Starting ranks of this machine: ports, and which processes are ranks."""

import base64
import json
import os
import socket
import subprocess
import sys
import time

import pytest

from trainer.runtime.local import free_port, rank_processes, world_info

SLEEP = "import time; time.sleep(60)"
BESIDE = (
    f"import subprocess, sys; subprocess.run([sys.executable, '-c', '{SLEEP}'], env={{'LOCAL_RANK': '0'}})"
)


def test_a_free_port_can_be_listened_on_at_once():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))
        listener.listen()


@pytest.mark.parametrize(
    ("visible", "devices"),
    [
        (None, [0, 1]),
        ("", [0, 1]),
        ("4,5", ["4", "5"]),
        ("6, 2,7", ["6", "2"]),
        ("GPU-8f2a,GPU-91bc", ["GPU-8f2a", "GPU-91bc"]),
        ("3", [0, 1]),
    ],
)
def test_ranks_get_the_devices_that_the_environment_names(visible, devices):
    """`deepspeed --num_gpus 2` would take GPUs 0 and 1 where CUDA_VISIBLE_DEVICES=4,5."""
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    told = json.loads(base64.urlsafe_b64decode(world_info(2, environment)))
    assert told == {"localhost": devices}


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
