"""A job that goes on with fewer nodes: its whole script runs here, with stand-ins for SLURM's commands."""

import contextlib
import json
import os
import signal
import subprocess

import psutil
import pytest

from launch.render import render
from launch.words import Job
from tests.helpers.wait import LIMIT_S, wait_until
from trainer.config.store import compose_config

# A node that stands in the file `lost` starts nothing; ranks do what the test says, in the file `ranks`.
TOOLS = {
    "srun": """\
echo "$*" >>"$HERE/calls"
for word in "$@"; do [[ $word == --nodelist=* ]] && nodes=${word#*=}; done
for node in ${nodes//,/ }; do grep -Fxqs "$node" "$HERE/lost" && exit 1; done
case "$*" in
    *--no-kill*) echo "$$" >"$HERE/keeper"; exec sleep 600 ;;
    *"trainer train"*) attempt=${PALIMPSEST_LOG_DIR##*-}; . "$HERE/ranks" ;;
    *"trainer doctor"*) [[ -e $HERE/checks ]] && . "$HERE/checks" ;;
esac
exit 0""",
    "scontrol": """\
case "$1 $2" in
    "show hostnames") printf '%s\\n' ${3//,/ } ;;
    "show hostlist") echo "$3" ;;
    *) echo "$*" >>"$HERE/asked" ;;
esac""",
    "squeue": "echo RUNNING",
    "scancel": """\
echo "$$" >>"$HERE/tellers"
[[ -e $HERE/in-transition ]] && exec sleep infinity
exit 0""",
}


@pytest.fixture
def started(tmp_path):
    """Return what starts the script of a job of three nodes whose ranks run a shell script."""
    scripts = []
    for name, text in TOOLS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)

    def start(ranks, *words, min_nodes=1):
        (tmp_path / "ranks").write_text(ranks)
        words = ("cluster=slurm_cpu", "cluster.num_nodes=3", f"cluster.min_nodes={min_nodes}", *words)
        job = Job("first", tmp_path / "run", tmp_path, tmp_path / "cache", "python", 180)
        (tmp_path / "job.sh").write_text(render(compose_config(words).cluster, job))
        nodes = {"SLURM_JOB_NODELIST": "node1,node2,node3", "SLURM_JOB_NUM_NODES": "3", "SLURM_NNODES": "3"}
        env = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "HERE": str(tmp_path),
            "SLURM_JOB_ID": "7",
            **nodes,
        }
        script = subprocess.Popen(
            ["bash", str(tmp_path / "job.sh")],
            env=env | {"SLURMD_NODENAME": "node1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        scripts.append(script)
        return script

    yield start
    for script in scripts:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)
        script.communicate(timeout=LIMIT_S)


@pytest.fixture
def job(started):
    """Return what submits such a job and waits for its script's end."""

    def run(ranks, *words, min_nodes=1):
        script = started(ranks, *words, min_nodes=min_nodes)
        out, errors = script.communicate(timeout=LIMIT_S)
        return subprocess.CompletedProcess(script.args, script.returncode, out, errors)

    return run


def lines(folder, event):
    record = (folder / "run" / "attempts.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, record) if line["event"] == event]


def ranks_started(folder):
    return [call for call in (folder / "calls").read_text().splitlines() if "trainer train" in call]


def has_ended(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


LOSE_2 = '((attempt > 1)) && exit 0; echo node2 >>"$HERE/lost"; exit 137'


def test_ranks_start_again_on_the_nodes_that_answer_without_the_queue(job, tmp_path):
    done = job(LOSE_2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Lost: node2. The job goes on with 2 of 3 nodes." in done.stdout
    first, second = ranks_started(tmp_path)
    assert "--nodes=3 --ntasks=3 --ntasks-per-node=1 --nodelist=node1,node2,node3 " in first
    assert "--nodes=2 --ntasks=2 --ntasks-per-node=1 --nodelist=node1,node3 " in second
    assert [line["code"] for line in lines(tmp_path, "ended")] == [75, 0]
    assert [line["nodes"] for line in lines(tmp_path, "started")] == ["node1,node2,node3", "node1,node3"]
    (lost,) = lines(tmp_path, "lost")
    assert (lost["attempt"], lost["nodes"], lost["left"], lost["of"]) == (1, "node2", 2, 3)
    assert not (tmp_path / "asked").exists(), "it was requeued"
    wait_until(
        lambda: has_ended(int((tmp_path / "keeper").read_text())), "the end of what looks after the script"
    )


def test_the_time_that_the_job_has_does_not_begin_anew(job, tmp_path):
    says = 'echo "$PALIMPSEST_DEADLINE ${SLURM_RESTART_COUNT:-0}" >>"$HERE/seen"'
    assert job(f"{says}; ((attempt == 1)) && sleep 1.1; {LOSE_2}").returncode == 0
    first, second = ([*map(int, line.split())] for line in (tmp_path / "seen").read_text().splitlines())
    assert first[0] == second[0]
    # Else ranks with checkpoint.resume=false would begin at step 0.
    assert (first[1], second[1]) == (0, 1)


def test_two_losses_one_after_the_other_leave_one_node_which_has_no_other_to_be_compared_with(job, tmp_path):
    done = job('((attempt > 2)) && exit 0; echo "node$((attempt + 1))" >>"$HERE/lost"; exit 75')
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line["nodes"] for line in lines(tmp_path, "started")][1:] == ["node1,node3", "node1"]
    checks = [call for call in (tmp_path / "calls").read_text().splitlines() if "trainer doctor" in call]
    assert len(checks) == 2


def test_fewer_than_the_fewest_wait_for_all_nodes(job, tmp_path):
    done = job(LOSE_2, min_nodes=3)
    assert "--no-kill" not in (tmp_path / "job.sh").read_text(), "there is nothing that it may come down to"
    (tmp_path / "lost").unlink()
    done = job('printf "node2\\nnode3\\n" >"$HERE/lost"; exit 137', min_nodes=2)
    assert done.returncode == 75
    assert (
        "Lost: node2,node3. What is left is fewer than 2 (cluster.min_nodes): the job waits for 3 nodes."
        in done.stdout
    )
    assert (tmp_path / "asked").read_text().splitlines()[-1] == "requeue 7" and not lines(tmp_path, "lost")


@pytest.mark.parametrize("code", [1, 75])
def test_a_crash_on_nodes_that_all_answer_is_requeued_as_ever(job, tmp_path, code):
    done = job(f"exit {code}")
    assert done.returncode == code and len(ranks_started(tmp_path)) == 1
    assert (tmp_path / "asked").read_text() == "requeue 7\n" and "Lost" not in done.stdout


def test_a_controller_that_does_not_answer_makes_no_node_a_lost_one(job, tmp_path):
    done = job('printf "node1\\nnode2\\nnode3\\n" >"$HERE/lost"; exit 75')
    assert "Lost" not in done.stdout and not lines(tmp_path, "lost") and len(ranks_started(tmp_path)) == 1


def test_what_a_person_must_mend_is_not_tried_again_on_nodes_that_all_answer(job, tmp_path):
    assert job("exit 2").returncode == 2
    assert len(ranks_started(tmp_path)) == 1 and not (tmp_path / "asked").exists()


def test_a_node_that_is_lost_in_the_checks_is_left_out_whatever_the_others_say_of_it(job, tmp_path):
    """They would name it, with the exit code that ends the job for good."""
    (tmp_path / "checks").write_text(
        '[[ -e $HERE/lost ]] && exit 0; echo node3 >"$HERE/lost"; echo 2 >"$PALIMPSEST_LOG_DIR/exit-code"; exit 2'
    )
    done = job("exit 0")
    assert done.returncode == 0, done.stdout + done.stderr
    (started,) = ranks_started(tmp_path)
    assert "--nodelist=node1,node2 " in started
    assert [line["code"] for line in lines(tmp_path, "ended")] == [75, 0]


def test_one_that_slurm_asks_to_stop_looks_for_no_lost_node(job, tmp_path):
    stops = f'kill -USR1 "$(<"$HERE/script")"; sleep 0.2; {LOSE_2}'
    done = job(stops, "cluster.setup=['echo $$ >$HERE/script']")
    assert done.returncode == 137 and done.stderr == "", done.stdout + done.stderr
    assert "telling the ranks to save" in done.stdout and not lines(tmp_path, "lost")
    assert (tmp_path / "asked").read_text() == "requeue 7\n"


def test_what_tells_the_ranks_does_not_wait_for_the_attempt_after_its_own(started, tmp_path):
    """scancel waits while a job goes into the queue, and would signal the next attempt; not all SLURMs end it."""
    (tmp_path / "in-transition").touch()
    told = tmp_path / "tellers"
    script = started(
        'kill -USR1 "$(<"$HERE/script")"; exec sleep infinity', "cluster.setup=['echo $$ >$HERE/script']"
    )
    wait_until(lambda: told.exists() and told.read_text().strip(), "what tells the ranks")
    script.kill()
    wait_until(lambda: has_ended(int(told.read_text().split()[0])), "the end of what told the ranks")


@pytest.mark.parametrize(
    ("launcher", "words"),
    [("torchrun", "--nnodes=2"), ("deepspeed", "--hostfile={}/run/logs/attempt-2/hostfile")],
)
def test_other_launchers_are_told_the_nodes_of_the_attempt(job, tmp_path, launcher, words):
    assert job(LOSE_2, f"cluster.launcher={launcher}").returncode == 0
    assert words.format(tmp_path) in ranks_started(tmp_path)[1]
    if launcher == "deepspeed":
        hosts = (tmp_path / "run/logs/attempt-2/hostfile").read_text()
        assert hosts == "node1 slots=1\nnode3 slots=1\n"
