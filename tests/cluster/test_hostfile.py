"""Two nodes of a hostfile: the deepspeed launcher with its runners, over pdsh, mpirun and srun."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.helpers.slurm_cluster import NODES, SUBNET, NoCluster, check_possible
from tests.helpers.ssh_hosts import ADDRESSES, ssh_hosts
from tests.helpers.submitted import START_S, overrides, trace
from trainer.checkpoint.layout import find_checkpoints, step_of
from trainer.metrics.jsonl import read

NUM_STEPS = 120
"""Of a tenth of a second: the signal goes through pdsh and ssh, which takes some."""


@pytest.fixture
def hosts(slurm, tmp_path, monkeypatch):
    """Write a hostfile of both nodes, which ssh reaches."""
    (tmp_path / "hosts").write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))
    try:
        with ssh_hosts(slurm, tmp_path / "ssh") as folder:
            monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
            yield tmp_path / "hosts"
    except NoCluster as error:
        pytest.skip(str(error))


@pytest.mark.timeout(1200)
def test_a_signal_to_the_launcher_saves_on_all_hosts_and_the_same_command_goes_on(hosts, project):
    run_dir = project / "hostfile"
    command = [
        *(sys.executable, "-m", "trainer", "train", *overrides(project, NUM_STEPS), f"run_dir={run_dir}"),
        *("cluster=hostfile", f"cluster.hostfile={hosts}", "cluster.environment.MARK=seen"),
        *("cluster.environment.OMP_NUM_THREADS='1'", f"cluster.environment.PATH={os.environ['PATH']}"),
    ]

    def start(log):
        output = (project / log).open("w")
        return subprocess.Popen(command, cwd=project, stdout=output, stderr=subprocess.STDOUT)

    def text(log):
        return (project / log).read_text()[-5000:]

    first = start("first.log")
    end = time.monotonic() + START_S
    while max((row["step"] for row in read(run_dir / "metrics.jsonl")), default=0) < 3:
        assert first.poll() is None and time.monotonic() < end, text("first.log")
        time.sleep(0.1)
    first.send_signal(signal.SIGTERM)
    assert first.wait(START_S) == 75, text("first.log")
    stopped = len(trace(run_dir))
    assert 3 <= stopped < NUM_STEPS
    second = start("second.log")
    assert second.wait(START_S) == 0, text("second.log")
    assert [step for step, _, _ in trace(run_dir)] == list(range(1, NUM_STEPS + 1))
    starts = [event for event in read(run_dir / "ledger.jsonl") if event["event"] == "started"]
    assert [(event["attempt"], event["step"], event["world_size"]) for event in starts] == [
        (1, 0, 2),
        (2, stopped, 2),
    ]
    assert "MARK=seen" in (run_dir / "environment").read_text().splitlines()


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
    monkeypatch.setenv("OMPI_MCA_oob_tcp_if_include", f"{SUBNET}.0/24")
    return [], hosts


@pytest.mark.parametrize("runner", ["openmpi", "slurm"])
@pytest.mark.timeout(600)
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
    # The mark shows in the environment of a rank.
    with log.open("w") as output:
        started = subprocess.Popen(
            words,
            cwd=tmp_path,
            env={**os.environ, "PYTHONSAFEPATH": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    end = time.monotonic() + START_S
    while max((row["step"] for row in read(run_dir / "metrics.jsonl")), default=0) < 3:
        assert started.poll() is None and time.monotonic() < end, log.read_text()[-5000:]
        time.sleep(0.1)
    ranks = [process for process in psutil.process_iter(["cmdline"]) if is_rank_of(process, run_dir)]
    assert len(ranks) == 2
    assert {rank.environ()["MARK"] for rank in ranks} == {mark}
    typed = psutil.Process(started.pid)
    (typed.children()[0] if before else typed).send_signal(signal.SIGTERM)
    assert started.wait(START_S) == 75, log.read_text()[-5000:]
    stopped = trace(run_dir)[-1][0]
    assert 3 <= stopped < NUM_STEPS
    assert [step_of(path) for path in find_checkpoints(run_dir)] == [stopped]


def is_rank_of(process, run_dir):
    with contextlib.suppress(psutil.Error):
        line = process.cmdline()
        return line[1:5] == ["-u", "-m", "trainer", "train"] and line[-1] == f"{run_dir}/config.yaml"
    return False


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
        timeout=START_S,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert "`all-reduce between node1, node2` must be at least 1000 GB/s a node" in said
    assert not (run_dir / "metrics.jsonl").exists()
