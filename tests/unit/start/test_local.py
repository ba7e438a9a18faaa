"""Starting ranks of this machine: ports, and which processes are ranks."""

import base64
import json
import os
import socket
import subprocess
import sys

import pytest

from tests.helpers.wait import wait_until
from trainer.dist.env import RankEnv
from trainer.dist.rendezvous import check_rendezvous
from trainer.start.local import free_port, held_port, rank_processes, why_ended, world_info

SLEEP = "import time; time.sleep(9999)"
BESIDE = (
    f"import subprocess, sys; subprocess.run([sys.executable, '-c', '{SLEEP}'], env={{'LOCAL_RANK': '0'}})"
)


def test_a_free_port_can_be_listened_on_at_once():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))
        listener.listen()


def test_a_port_is_held_for_the_store_of_the_ranks_and_given_to_nobody_else():
    """It was asked for seconds before ranks listened, and another program could have it by then."""
    from torch.distributed import TCPStore

    with held_port() as port:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        check_rendezvous(RankEnv(0, 0, 2, "127.0.0.1", port))
        store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
        store.set("key", "heard")
        assert TCPStore("127.0.0.1", port, wait_for_workers=False).get("key") == b"heard"


def test_a_port_that_somebody_chose_is_left_to_them():
    with held_port(29_501) as port:
        assert port == 29_501


@pytest.mark.parametrize(
    ("visible", "devices"),
    [
        (None, [0, 1]),
        ("", ["-1", "-1"]),
        ("-1", ["-1", "-1"]),
        ("4,5", ["4", "5"]),
        ("6, 2,7", ["6", "2"]),
        ("GPU-8f2a,GPU-91bc", ["GPU-8f2a", "GPU-91bc"]),
        ("3", ["3", "-1"]),
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
        found = wait_until(lambda: rank_processes(process.pid), "a rank below the launcher", process=process)
        assert len(found) == 1 and found[0].pid != process.pid
    finally:
        for rank in found:
            rank.kill()
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("code", "said"),
    [(137, "where memory is short"), (139, "a rank was ended by SIGSEGV"), (134, "by SIGABRT")],
)
def test_what_ranks_could_not_say_themselves_is_said_for_them(code, said):
    assert said in why_ended(code)


@pytest.mark.parametrize("code", [0, 1, 2, 75, 130, 143, 129, 255])
def test_what_ranks_have_said_is_not_said_again(code):
    assert why_ended(code) is None
