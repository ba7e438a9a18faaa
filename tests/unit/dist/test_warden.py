"""A rank ends when its launcher does, and when it gives no sign of life; its warden ends with it."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from tests.helpers.wait import LIMIT_S, wait_until
from trainer.dist.warden import LAUNCHER, ties_of

RANK = """
import os, signal, sys, time
from trainer.dist.warden import start_warden, this_warden
start_warden(3, os.environ)
warden = this_warden()
if sys.argv[1] != "-":
    warden.allow(float(sys.argv[1]))
print(os.getpid(), warden.process.pid, flush=True)
if sys.argv[2:] == ["end"]:
    sys.exit(0)
signal.pause()
"""
LAUNCH = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1], '-'])"


def environment(**variables):
    path = os.pathsep.join(path for path in sys.path if path)
    return {"PATH": os.environ["PATH"], "PYTHONPATH": path, **variables}


def start(*words, **variables):
    process = subprocess.Popen(
        [sys.executable, "-c", *words],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    rank, warden = map(int, process.stdout.readline().split())
    return process, psutil.Process(rank), psutil.Process(warden)


def is_over(process):
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_rank_ends_when_its_launcher_is_killed_and_so_does_its_warden(number):
    launcher, rank, warden = start(LAUNCH, RANK, CROSS_RANK="0")
    launcher.send_signal(number)
    launcher.wait()
    wait_until(lambda: is_over(rank), "the end of the rank")
    wait_until(lambda: is_over(warden), "the end of the warden")
    assert "[rank 3] Its launcher" in launcher.stderr.read()


def test_a_rank_that_a_shell_started_outlives_it():
    """As with nohup, or a scheduler's script that starts ranks and ends."""
    launcher, rank, warden = start(LAUNCH, RANK)
    launcher.kill()
    launcher.wait()
    try:
        # The warden looks once a second, at its first words too.
        wait_until(lambda: warden.cpu_times().user + warden.cpu_times().system > 0, "a look of the warden")
        assert rank.is_running() and warden.is_running()
    finally:
        rank.kill()
    wait_until(lambda: is_over(warden), "the end of the warden")


def test_a_rank_that_is_stopped_is_ended_when_its_time_is_over():
    process, rank, warden = start(RANK, "1.0")
    rank.suspend()
    assert process.wait(LIMIT_S) == -signal.SIGKILL
    wait_until(lambda: is_over(warden), "the end of the warden")
    assert "[rank 3] No sign of life for 1 s" in process.stderr.read()


def test_a_rank_that_is_done_leaves_no_warden():
    process, _, warden = start(RANK, "-", "end")
    assert process.wait(LIMIT_S) == 0
    wait_until(lambda: is_over(warden), "the end of the warden")


@pytest.mark.parametrize(
    "name", ["CROSS_RANK", "TORCHELASTIC_RUN_ID", "OMPI_COMM_WORLD_RANK", "SLURM_STEP_ID"]
)
def test_a_rank_is_tied_to_the_launchers_that_are_known(name):
    assert ties_of({name: "1"}, 4242) == [4242]
    assert ties_of({name: "1"}, 1) == [], "the first process of a container or machine does not end before it"


def test_a_rank_whose_launcher_is_another_process_by_now_does_not_begin():
    assert ties_of({LAUNCHER: "4242", "RANK": "1"}, 4242) == [4242]
    with pytest.raises(ConnectionError, match="was killed before the rank began"):
        ties_of({LAUNCHER: "4242", "RANK": "1"}, 1)
