"""`palimpsest doctor` as a person starts it: alone, and under launchers, on processes of this machine."""

import os
import subprocess
import sys

import pytest

from tests.helpers.ranks import FOREIGN, held_port
from tests.helpers.wait import LIMIT_S, PATIENT

MODULE = (sys.executable, "-m", "trainer", "doctor")


@pytest.fixture
def port():
    with held_port() as port:
        yield port


def doctor(folder, *words, start=MODULE):
    """Run the command in an empty folder, with a port for PORT; return its exit code and what it says."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    with held_port() as port:
        command = [word.replace("PORT", str(port)) for word in (*start, *words, *PATIENT)]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_S
        )
    return done.returncode, done.stdout + done.stderr


def test_two_processes_of_a_machine_meet_and_measure_what_is_between_them(tmp_path):
    code, said = doctor(tmp_path, "cluster.ranks_per_node=2", "run_dir=runs/a")
    assert code == 0, said
    for line in (
        "installed      deepspeed",
        "SLURM",
        "2 of 2 process(es) at 127.0.0.1:",
        "Preflight: all well",
    ):
        assert line in said
    assert "GB/s at least" in said and "all-reduce between nodes      -  one node" in said
    assert len(said.splitlines()) < 40, "more than a screen"
    assert list(tmp_path.iterdir()) == [], "asking wrote files"


@pytest.mark.slow
def test_a_floor_that_is_missed_ends_with_2_and_says_where(tmp_path):
    words = ("cluster.ranks_per_node=2", "cluster.preflight.min_intra_node_gb_per_s=1000")
    code, said = doctor(tmp_path, *words, "cluster.master_port=PORT")
    assert code == 2, said
    assert "must be at least 1000 GB/s (cluster.preflight.min_intra_node_gb_per_s), but is" in said
    assert said.count("Error: ") == 1 and "Preflight: 1 problem" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "start",
    [
        "torch.distributed.run --nproc-per-node=2 --master-port=PORT -m trainer",
        "deepspeed.launcher.runner --num_gpus=2 --master_port=PORT --no_local_rank --module trainer",
    ],
    ids=["torchrun", "deepspeed"],
)
def test_launchers_start_the_same_checks_and_let_the_first_process_speak(tmp_path, start):
    start = (sys.executable, "-m", *start.split())
    code, said = doctor(tmp_path, "doctor", start=start)
    assert code == 0 and "2 of 2 process(es)" in said, said
    missed = "cluster.preflight.min_intra_node_gb_per_s=1000"
    code, said = doctor(tmp_path, "doctor", missed, start=start)
    assert code != 0 and said.count("Error: `all-reduce in") == 1 and "Preflight: 1 problem" in said, said


@pytest.mark.slow
def test_of_three_nodes_each_is_measured_with_its_neighbours_when_all_together_are_slow(tmp_path, port):
    """Processes of one machine that are told to be nodes of their own."""
    words = (*PATIENT, "run_dir=runs/a", "cluster.preflight.min_inter_node_gb_per_s=1000")
    processes = []
    for rank in range(3):
        environment = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        environment |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1"}
        environment |= {
            "MASTER_PORT": str(port),
            "SLURMD_NODENAME": f"node{rank + 1}",
            "OMP_NUM_THREADS": "1",
        }
        start = subprocess.Popen(
            [*MODULE, *words],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(start)
    said = processes[0].communicate(timeout=LIMIT_S)[0]
    assert [process.wait(LIMIT_S) for process in processes] == [2, 2, 2], said
    assert "`all-reduce between node1, node2, node3` must be at least 1000 GB/s a node" in said
    assert "clocks                        3  within" in said
