"""Ranks hear of each other's end at once: here as processes that wait for ever, as in a collective."""

import os
import re
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


def start(tmp_path, acts, code=RANK, place=None):
    port_file = str(place or tmp_path / "port")
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), str(len(acts)), port_file, act],
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


# ---- ranks that stand still


WATCHING = """
import ctypes, json, os, pathlib, sys, threading, time
from trainer.dist.progress import PROGRESS, Limits, Phase
from trainer.dist.warden import start_warden, this_warden
from trainer.dist.watch import Watch, Watching, admit, connect, listen

rank, num, folder, act = int(sys.argv[1]), int(sys.argv[2]), pathlib.Path(sys.argv[3]), sys.argv[4]
start_warden(rank, os.environ)
port = folder / "port"
if rank == 0:
    door, number = listen(num - 1)
    (folder / "port.tmp").write_text(str(number))
    (folder / "port.tmp").rename(port)
    peers = admit(door, "token", num - 1)
else:
    while not port.exists():
        time.sleep(0.02)
    peers = connect("127.0.0.1", int(port.read_text()), "token", rank)

def left(code):
    (folder / f"code-{rank}").write_text(str(code))

limits = Limits(1.5, 5.0, dict.fromkeys(Phase, 600.0))
watch = Watch(rank, peers, Watching(limits, 0.1, left, this_warden()))
watch.stacks.keep_in(folder)
PROGRESS.begin(Phase.load)
for _ in range(9):
    PROGRESS.step_took(0.001)
print("ready", flush=True)
sys.stdin.readline()

def stand_still_here():
    time.sleep(9999)

def hold_the_lock():
    ctypes.PyDLL(None).sleep(9999)

PROGRESS.begin(Phase.step, 5)
if act == "hang":
    stand_still_here()
if act == "hold":
    hold_the_lock()
PROGRESS.mark()
if act == "save":  # longer than a step may take, and with Python's lock held
    PROGRESS.begin(Phase.save)
    ctypes.PyDLL(None).sleep(5)
    PROGRESS.begin(Phase.step, 6)
    watch.leave()
    print("left", flush=True)
    sys.exit(0)
if act == "long":  # what may take 600 s
    PROGRESS.begin(Phase.evaluate)
print("waits", flush=True)
threading.Event().wait()
"""


def watch_each_other(tmp_path, acts):
    ranks = start(tmp_path, acts, WATCHING, tmp_path)
    for rank in ranks:
        print(file=rank.stdin, flush=True)
    return ranks


def stacks(tmp_path, rank):
    return (tmp_path / f"rank-{rank}.stacks").read_text()


def test_a_rank_that_hangs_is_named_and_all_write_their_stacks_and_end_with_a_code_that_requeues(tmp_path):
    ranks = watch_each_other(tmp_path, ["wait", "hang", "wait"])
    assert ends(ranks) == [75, 75, 75]
    said = ranks[0].stderr.read()
    assert "[rank 1] Error: Rank 1 has stood still for " in said
    assert "in phase step of step 5, at <string>" in said and "stand_still_here (limit 2 s)" in said
    assert "stand_still_here" in stacks(tmp_path, 1) and "File" in stacks(tmp_path, 0)
    for rank in range(3):
        assert (tmp_path / f"code-{rank}").read_text() == "75", "a launcher may lose the code"
        assert "Rank 1 has stood still" in stacks(tmp_path, rank)
        assert "NCCL's flight recorder: none, torch is not loaded." in stacks(tmp_path, rank)


@pytest.mark.parametrize("stopped", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_rank_that_is_stopped_is_named_by_the_others_and_killed_by_its_warden(tmp_path, stopped):
    ranks = watch_each_other(tmp_path, ["wait"] * 3)
    assert ranks[stopped].stdout.readline() == "waits\n"
    os.kill(ranks[stopped].pid, signal.SIGSTOP)
    codes = ends(ranks)
    # Its warden lets it go on before it ends it: it may hear of its own failure first, and blames nobody else.
    assert codes.pop(stopped) in (75, -signal.SIGKILL) and codes == [75, 75]
    said = ranks[1 if stopped == 0 else 0].stderr.read()
    assert f"[rank {stopped}] Error: Rank {stopped} has given no sign of life for " in said
    found = stacks(tmp_path, stopped)
    assert "most recent call first" in found, "it went on just long enough for that"
    assert f"Rank {stopped} has given no sign of life" in found, "it blames nobody else"


@pytest.mark.parametrize("stopped", [0, 2])
def test_a_rank_that_is_stopped_where_it_may_take_long_is_named_as_soon_as_in_a_step(tmp_path, stopped):
    ranks = watch_each_other(tmp_path, ["long"] * 3)
    assert ranks[stopped].stdout.readline() == "waits\n"
    os.kill(ranks[stopped].pid, signal.SIGSTOP)
    assert ends(ranks) == [75] * 3
    said = ranks[1 if stopped == 0 else 0].stderr.read()
    sentence = rf"Rank {stopped} was stopped by a signal \(SIGSTOP\) for \d+ s while others wait for it"
    assert re.search(rf"^\[rank {stopped}\] Error: {sentence}$", said, re.MULTILINE), said
    assert f"[rank {stopped}] Stopped by a signal for " in ranks[stopped].stderr.read()
    assert all(re.search(sentence, stacks(tmp_path, rank)) for rank in range(3))


def test_a_rank_that_holds_pythons_lock_is_named_too(tmp_path):
    ranks = watch_each_other(tmp_path, ["wait", "hold", "wait"])
    codes = ends(ranks)
    # The signal at which it writes its stacks may end the call.
    assert codes.pop(1) in (75, -signal.SIGKILL, -signal.SIGSEGV) and codes == [75, 75]
    assert "Rank 1 has given no sign of life" in ranks[0].stderr.read()
    assert "hold_the_lock" in stacks(tmp_path, 1)


def test_a_phase_with_a_limit_of_its_own_is_no_alarm_however_silent_and_leaves_no_file(tmp_path):
    ranks = watch_each_other(tmp_path, ["save", "save"])
    assert ends(ranks) == [0, 0], [rank.stderr.read() for rank in ranks]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["port"]
