"""Ranks hear of each other's end at once: here as processes that wait for ever, as in a collective."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
LIMIT_S = 60.0

RANK = """
import sys, threading
from trainer.dist.watch import Watch, admit, connect, listen
rank, num, port_file, act = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
if rank == 0:
    door, port = listen(num - 1)
    import os
    open(port_file + ".tmp", "w").write(str(port))
    os.rename(port_file + ".tmp", port_file)
    peers = admit(door, "token", num - 1)
else:
    import os, time
    while not os.path.exists(port_file):
        time.sleep(0.02)
    peers = connect("127.0.0.1", int(open(port_file).read()), "token", rank)
watch = Watch(rank, peers)
print("ready", flush=True)
sys.stdin.readline()
if act == "fail":
    watch.fail(2, "the disk of rank %d is full" % rank)
    sys.exit(2)
if act == "leave":
    watch.leave()
    print("left", flush=True)
    sys.stdin.readline()
    sys.exit(0)
threading.Event().wait()
"""


def start(tmp_path, acts):
    port_file = str(tmp_path / "port")
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(len(acts)), port_file, act],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for rank, act in enumerate(acts)
    ]
    for rank in ranks:
        assert rank.stdout.readline() == "ready\n", rank.stderr.read()
    return ranks


def ends(ranks):
    return [rank.wait(LIMIT_S) for rank in ranks]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_rank_that_fails_ends_all_with_its_code_and_sentence(tmp_path, failing):
    ranks = start(tmp_path, ["fail" if rank == failing else "wait" for rank in range(3)])
    for rank in ranks:
        print(file=rank.stdin, flush=True)
    assert ends(ranks) == [2, 2, 2]
    said = [rank.stderr.read() for rank in ranks]
    assert said[0] == (f"[rank {failing}] Error: the disk of rank {failing} is full\n" if failing else "")
    assert said[1:] == ["", ""]


@pytest.mark.parametrize("killed", [0, 2])
def test_a_rank_that_is_killed_ends_all(tmp_path, killed):
    ranks = start(tmp_path, ["wait"] * 3)
    os.kill(ranks[killed].pid, signal.SIGKILL)
    codes = ends(ranks)
    assert codes.pop(killed) == -signal.SIGKILL and codes == [1, 1]
    if killed:
        assert "[rank 2] Error: Rank 2 is gone without a word" in ranks[0].stderr.read()


def test_ranks_that_are_done_end_nobody(tmp_path):
    ranks = start(tmp_path, ["leave", "leave", "wait"])
    for rank in ranks[:2]:
        print(file=rank.stdin, flush=True)
        assert rank.stdout.readline() == "left\n"
    print(file=ranks[1].stdin, flush=True)
    assert ranks[1].wait(LIMIT_S) == 0
    # Whoever is told to end after that is told by nobody.
    assert ranks[0].poll() is None and ranks[2].poll() is None
    for rank in (ranks[0], ranks[2]):
        rank.kill()
        rank.wait()


def test_a_stranger_at_the_door_is_not_let_in(tmp_path):
    import threading

    from trainer.dist.watch import admit, connect, listen

    door, port = listen(1)
    found = []
    waiting = threading.Thread(target=lambda: found.append(admit(door, "token", 1)))
    waiting.start()
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        mine = connect("127.0.0.1", port, "token", 1)
        waiting.join(LIMIT_S)
    assert list(found[0]) == [1] and list(mine) == [0]
    for connection in (*mine.values(), *found[0].values()):
        connection.close()
