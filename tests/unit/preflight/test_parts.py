"""The measuring parts on this machine: folder, clock, alarm, versions, matmul."""

import subprocess
import sys
import threading
import time

import pytest
import torch

from tests.helpers.clock import Clock
from tests.helpers.wait import LIMIT_S
from trainer.dist.env import RankEnv
from trainer.errors import TopologyError
from trainer.preflight import clock, shared_folder
from trainer.preflight.matmul import measure
from trainer.preflight.meeting import Meeting, open_meeting
from trainer.preflight.versions import code_digests, compared_versions
from trainer.start.local import free_port

NONCE = "0123456789abcdef" * 2


@pytest.fixture
def clock_of_folder(monkeypatch):
    """Return the clock by which files of other nodes are waited for."""
    clock = Clock()
    monkeypatch.setattr("trainer.preflight.shared_folder.time", clock)
    return clock


def test_a_probe_is_written_whole_seen_and_removed(tmp_path, clock_of_folder):
    assert shared_folder.write_probe(tmp_path, NONCE, "node1") is None
    assert shared_folder.probe_path(tmp_path, NONCE, "node1").stat().st_size == 65536
    assert shared_folder.wait_for_probe(tmp_path, NONCE, "node1", 1.0) == 0
    assert shared_folder.wait_for_probe(tmp_path, "f" * 32, "node1", 8.0) is None
    assert 8.0 < clock_of_folder.now < 8.0 + 2 * shared_folder.POLL_S
    shared_folder.remove_probe(tmp_path, NONCE, "node1")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_comes_late_or_grows_is_waited_for(tmp_path, clock_of_folder):
    clock_of_folder.at(2.0, lambda: shared_folder.probe_path(tmp_path, NONCE, "node1").write_text("half"))
    clock_of_folder.at(4.0, lambda: shared_folder.write_probe(tmp_path, NONCE, "node1"))
    assert 4.0 <= shared_folder.wait_for_probe(tmp_path, NONCE, "node1", 5.0) < 4.0 + 2 * shared_folder.POLL_S


def test_why_a_folder_takes_no_file_is_told(tmp_path):
    file = tmp_path / "file"
    file.touch()
    assert shared_folder.write_probe(file, NONCE, "node1") == "Not a directory"
    assert shared_folder.write_probe(tmp_path / "none", NONCE, "node1") == "No such file or directory"
    assert shared_folder.free_bytes(tmp_path / "none") is None
    assert shared_folder.nearest(tmp_path / "none" / "of" / "these") == tmp_path
    assert shared_folder.nearest(file / "run") == file, "a run directory cannot be made below a file"


def two_meetings():
    """Return two processes' ends of one store, both in this process."""
    port, deadline = free_port(), time.monotonic() + LIMIT_S
    envs = [RankEnv(rank, 0, 2, "127.0.0.1", port) for rank in (0, 1)]
    return [open_meeting(env, f"node{env.rank + 1}", LIMIT_S, deadline) for env in envs]


def test_clocks_of_one_machine_agree_within_the_exchange():
    first, other = two_meetings()
    answering = threading.Thread(target=clock.answer, args=(first, 1, LIMIT_S))
    answering.start()
    facts = clock.ask(other, LIMIT_S)
    answering.join()
    assert facts.node == "node2" and facts.round_trip_s > 0
    assert abs(facts.ahead_s) <= facts.round_trip_s / 2 + 1e-3


def test_messages_are_collected_from_those_who_left_one_and_waited_for_no_longer():
    first, other = two_meetings()
    other.tell("in/1", "node2")
    assert first.collect("in", range(2), 0.3) == {1: "node2"}
    other.enter("matmul")
    assert first.phases() == {1: "matmul"}
    with pytest.raises(TopologyError, match="`rendezvous of node2` must hear from the first process"):
        other.hear("nothing", 0.3)


def test_a_first_node_that_does_not_answer_is_a_sentence_with_its_address():
    env = RankEnv(1, 0, 2, "127.0.0.1", free_port())
    with pytest.raises(TopologyError, match=r"must reach the first process at 127\.0\.0\.1:\d+ within 1 s"):
        open_meeting(env, "node2", 1, time.monotonic() + 5)


def test_one_process_meets_itself():
    alone = open_meeting(RankEnv(0, 0, 1, "127.0.0.1", 1), "here", 1, time.monotonic() + 5)
    alone.tell("in/0", "here")
    assert isinstance(alone, Meeting) and alone.collect("in", range(1), 1.0) == {0: "here"}


HANGS = """
import sys, time
from trainer.preflight.alarm import ended_after
with ended_after({seconds}, {words}, 2):
    {hang}
print("done")
"""


@pytest.mark.parametrize(
    ("seconds", "words", "hang", "code", "said"),
    [
        # Nobody waits for the end of what hangs.
        (0.5, 'lambda: print("last words")', "time.sleep(9999)", 2, "last words\n"),
        (0.5, "lambda: time.sleep(9999)", "time.sleep(9999)", 2, ""),
        (600, 'lambda: print("last words")', "pass", 0, "done\n"),
        # Holds Python's lock, so that only the kernel can end it.
        pytest.param(
            *(0.5, 'lambda: print("never")', "__import__('ctypes').PyDLL(None).sleep(9999)", -14, ""),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["hangs", "hangs twice", "is done", "holds the lock"],
)
def test_a_process_that_hangs_is_ended_after_its_last_words(seconds, words, hang, code, said):
    done = subprocess.run(
        [sys.executable, "-c", HANGS.format(seconds=seconds, words=words, hang=hang)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert (done.returncode, done.stdout) == (code, said)


def test_versions_and_code_of_this_environment():
    versions = compared_versions()
    assert versions["torch"] == torch.__version__ and versions["deepspeed"]
    code = code_digests()
    assert {"trainer/cli.py", "trainer/conf/train.yaml", "trainer/launch/job.sh.tmpl"} <= code.keys()
    assert code == code_digests()


def test_the_rate_of_this_cpu():
    measured = measure(torch.device("cpu"))
    assert measured.flops > 1e8 and measured.gpu is None
