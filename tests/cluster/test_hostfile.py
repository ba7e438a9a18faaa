"""Two nodes without a scheduler: the deepspeed launcher over pdsh and ssh."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.slurm_cluster import NoCluster
from tests.helpers.ssh_hosts import ADDRESSES, ssh_hosts
from tests.helpers.submitted import START_S, overrides, trace
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
    assert (run_dir / "environment").read_text().splitlines()[-3:][0] == "MARK=seen"


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
