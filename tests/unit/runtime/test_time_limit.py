"""Code that does not end is ended, in any thread and after a fork, and nobody else is."""

import os
import threading
import time

import pytest

from trainer.runtime.time_limit import TookTooLong, at_most


def forever():
    while True:
        sum(range(100))


def test_a_loop_that_does_not_end_is_ended():
    with pytest.raises(TookTooLong), at_most(0.1):
        forever()
    with at_most(0.1):
        pass


def test_who_waits_is_not_ended():
    with at_most(0.1):
        time.sleep(0.8)


def test_a_thread_is_ended_alone():
    found = []

    def work():
        try:
            with at_most(0.1):
                forever()
        except TookTooLong:
            found.append("ended")

    thread = threading.Thread(target=work)
    with at_most(60):
        thread.start()
        thread.join()
    assert found == ["ended"]


def test_a_fork_has_a_watch_of_its_own():
    with at_most(60):
        pass
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with at_most(0.1):
                forever()
        except TookTooLong:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
