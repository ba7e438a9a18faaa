"""Two nodes of a hostfile: the deepspeed launcher with its runners, over pdsh, mpirun and srun."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.helpers.slurm_cluster import NODES, NoCluster, check_possible
from tests.helpers.ssh_hosts import ssh_hosts
from tests.helpers.standstill import go_on, is_waiting, stand_still
from tests.helpers.submitted import last_step, overrides, trace
from tests.helpers.wait import LIMIT_S, wait_until
from trainer.checkpoint.layout import find_checkpoints, step_of
from trainer.metrics.jsonl import read
from trainer.runtime.job import VARIABLES

NUM_STEPS = 40
"""Of a tenth of a second: ranks stand still until the signal has come to them, through pdsh and ssh."""


@pytest.fixture
def hosts(slurm, tmp_path, monkeypatch):
    """Write a hostfile of both nodes, which ssh reaches."""
    (tmp_path / "hosts").write_text("".join(f"{address} slots=1\n" for address in slurm.addresses))
    try:
        with ssh_hosts(slurm, tmp_path / "ssh") as folder:
            monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
            yield tmp_path / "hosts"
    except NoCluster as error:
        pytest.skip(str(error))


def on_hosts(project, run_dir, hosts, num_steps):
    """Return the command that trains on both hosts."""
    return [
        *(sys.executable, "-m", "trainer", "train", *overrides(project, num_steps), f"run_dir={run_dir}"),
        *("cluster=hostfile", f"cluster.hostfile={hosts}", "cluster.environment.MARK=seen"),
        *("cluster.environment.OMP_NUM_THREADS='1'", f"cluster.environment.PATH={os.environ['PATH']}"),
    ]


@pytest.mark.slow
def test_a_run_trains_on_all_hosts_with_the_variables_of_its_configuration(hosts, project):
    run_dir = project / "short"
    done = subprocess.run(on_hosts(project, run_dir, hosts, 2), cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (start,) = [event for event in read(run_dir / "ledger.jsonl") if event["event"] == "started"]
    assert (start["attempt"], start["step"], start["world_size"]) == (1, 0, 2)
    assert [step for step, _, _ in trace(run_dir)] == [1, 2]
    assert "MARK" not in (run_dir / "environment").read_text(), (
        "values are in a file that is gone with the run"
    )
    assert not [*run_dir.glob("logs/*/.variables.json")]


@pytest.mark.slow
def test_a_signal_to_the_launcher_saves_on_all_hosts_and_the_same_command_goes_on(hosts, project):
    run_dir = project / "hostfile"
    command = on_hosts(project, run_dir, hosts, NUM_STEPS)

    def start(log):
        output = (project / log).open("w")
        return subprocess.Popen(command, cwd=project, stdout=output, stderr=subprocess.STDOUT)

    def text(log):
        return (project / log).read_text()[-5000:]

    first = start("first.log")
    ranks = ranks_at_step_3(run_dir, first, lambda: text("first.log"))
    first.send_signal(signal.SIGTERM)
    release(ranks)
    assert first.wait(LIMIT_S) == 75, text("first.log")
    stopped = len(trace(run_dir))
    assert 3 <= stopped < NUM_STEPS
    second = start("second.log")
    assert second.wait(LIMIT_S) == 0, text("second.log")
    assert [step for step, _, _ in trace(run_dir)] == list(range(1, NUM_STEPS + 1))
    starts = [event for event in read(run_dir / "ledger.jsonl") if event["event"] == "started"]
    assert [(event["attempt"], event["step"], event["world_size"]) for event in starts] == [
        (1, 0, 2),
        (2, stopped, 2),
    ]


def ranks_at_step_3(run_dir, process, seen):
    """Return the ranks, which stand still after some steps."""
    wait_until(lambda: last_step(run_dir / "metrics.jsonl") >= 3, "the third step", seen, process)
    return stand_still(run_dir)


def release(ranks):
    """Let the ranks go on once one of them has been told to stop, on which all of them do."""
    wait_until(lambda: any(is_waiting(rank, signal.SIGUSR1) for rank in ranks), "the signal at a rank")
    go_on(ranks)


def runner_words(runner, slurm, hosts, project, monkeypatch):
    """Return the command to start under, and the hostfile."""
    if runner == "slurm":
        # Inside SLURM's job its names count.
        (project / "names").write_text("".join(f"{node} slots=1\n" for node in NODES))
        return ["salloc", "--quiet", "--nodes=2", "--ntasks-per-node=1"], project / "names"
    check_possible(("mpirun", "ompi_info"), ("openmpi-bin",))
    # Daemons answer to the address that they see of this machine; mpirun refuses root unless told twice.
    for name in ("RUN_AS_ROOT", "RUN_AS_ROOT_CONFIRM"):
        monkeypatch.setenv(f"OMPI_ALLOW_{name}", "1")
    monkeypatch.setenv("OMPI_MCA_oob_tcp_if_include", f"{slurm.subnet}.0/24")
    return [], hosts


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["openmpi", "slurm"])
def test_other_runners_train_save_at_a_signal_and_hand_variables_on(
    slurm, hosts, project, tmp_path, monkeypatch, runner
):
    run_dir = project / f"hostfile-{runner}"
    mark = "seen" if runner == "slurm" else "^seen"
    # Ranks would find it first.
    (tmp_path / "trainer.py").write_text("raise SystemExit('a file of the working directory')\n")
    before, hostfile = runner_words(runner, slurm, hosts, project, monkeypatch)
    words = [
        *(*before, sys.executable, "-m", "trainer", "train", *overrides(project, NUM_STEPS)),
        *(f"run_dir={run_dir}", "cluster=hostfile", f"cluster.hostfile={hostfile}"),
        *(f"cluster.deepspeed_runner={runner}", "cluster.environment.OMP_NUM_THREADS='1'"),
        f"cluster.environment.MARK='{mark}'",
    ]
    log = tmp_path / "log"
    with log.open("w") as output:
        started = subprocess.Popen(
            words,
            cwd=tmp_path,
            env={**os.environ, "PYTHONSAFEPATH": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    ranks = ranks_at_step_3(run_dir, started, lambda: log.read_text()[-5000:])
    assert len(ranks) == 2
    # No command line tells it: a rank takes it from a file that its environment names.
    assert {json.loads(Path(rank.environ()[VARIABLES]).read_text())["MARK"] for rank in ranks} == {mark}
    typed = psutil.Process(started.pid)
    (typed.children()[0] if before else typed).send_signal(signal.SIGTERM)
    release(ranks)
    assert started.wait(LIMIT_S) == 75, log.read_text()[-5000:]
    stopped = trace(run_dir)[-1][0]
    assert 3 <= stopped < NUM_STEPS
    assert [step_of(path) for path in find_checkpoints(run_dir)] == [stopped]


@pytest.mark.slow
def test_hosts_that_fail_their_checks_are_named_and_nothing_is_trained(hosts, project):
    run_dir = project / "hostfile-slow"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "trainer", "train", *overrides(project, NUM_STEPS), f"run_dir={run_dir}"),
            *("cluster=hostfile", f"cluster.hostfile={hosts}", "cluster.environment.OMP_NUM_THREADS='1'"),
            *(
                f"cluster.environment.PATH={os.environ['PATH']}",
                "cluster.preflight.min_inter_node_gb_per_s=1000",
            ),
        ],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert "`all-reduce between node1, node2` must be at least 1000 GB/s a node" in said
    assert not (run_dir / "metrics.jsonl").exists()
