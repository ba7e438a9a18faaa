"""What is started on the hosts of a hostfile, what tells them to stop, and what is found out before."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from trainer.errors import TopologyError
from trainer.runtime.job import EXIT_CODE, LOG_DIR, VARIABLES, take_over
from trainer.start.remote import Hosts, code_of_ranks, signal_command, start_hosts

CONFIG = Path("/shared/runs/first/config.yaml")


def hosts(runner="pdsh", **change):
    return Hosts(
        **{
            "names": ["node1", "node2"],
            "slots": 4,
            "file": Path("/shared/hosts"),
            "runner": runner,
            "master_port": 29600,
        }
        | change
    )


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Return a function that puts a shell script under a name on the PATH, which is otherwise this environment's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def make(name, script):
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)

    return make


def test_the_launcher_gets_the_frozen_configuration_and_nothing_else():
    command = hosts().command("train", CONFIG, {"MARK": "in the file"})
    at = command.index("--module")
    assert command[at:] == ["--module", "trainer", "train", "--config", str(CONFIG)]
    assert command[command.index("--hostfile") + 1] == "/shared/hosts"
    assert command[command.index("--launcher") + 1] == "pdsh"
    assert command[command.index("--master_addr") + 1] == "node1" and "--no_local_rank" in command
    assert hosts().environment_file({"NCCL_IB_HCA": "a,b"}) == "NCCL_IB_HCA=a,b\n"


@pytest.fixture
def started(program, tmp_path, monkeypatch):
    """Return a function that goes through DeepSpeed's own launcher, down to the words that mpirun or srun gets."""

    def start(runner, name, variables):
        keep = f"cp -p {tmp_path}/run/.variables.json {tmp_path}/seen"
        program(name, f"printf '%s\\n' \"$@\" >{tmp_path}/words; {keep}")
        for found in ("ompi_info", "sinfo"):
            program(found, "exit 0")
        (tmp_path / "hosts").write_text("node1 slots=4\nnode2 slots=4\n")
        run_dir = tmp_path / "run"
        run_dir.mkdir(exist_ok=True)
        monkeypatch.setenv("DS_ACCELERATOR", "cpu")
        monkeypatch.delenv("PYTHONPATH", raising=False)
        found = hosts(runner, file=tmp_path / "hosts", cpus_per_rank=6)
        # Nobody ran, so nobody said that the training is done.
        assert start_hosts("train", run_dir / "config.yaml", found, variables, run_dir) == 1
        words = (tmp_path / "words").read_text().split("\n")[:-1]
        python = ["-u", "-m", "trainer", "train", "--config", str(run_dir / "config.yaml")]
        assert words[-7:] == [sys.executable, *python]
        return words[:-7]

    return start


def test_mpirun_starts_the_module_with_variables_as_they_are(started, tmp_path):
    given = {"NCCL_SOCKET_IFNAME": "^docker0", "NCCL_IB_HCA": "mlx5_0,mlx5_1"}
    words = started("openmpi", "mpirun", given)
    assert words[:4] == ["-n", "8", "-hostfile", str(tmp_path / "hosts")]
    assert words[words.index("env") :] == [
        "env",
        "PYTHONSAFEPATH=1",
        "PYTHONPATH=/dev/null",
        "NCCL_SOCKET_IFNAME=^docker0",
        "NCCL_IB_HCA=mlx5_0,mlx5_1",
        f"{VARIABLES}={tmp_path}/run/.variables.json",
        f"{LOG_DIR}={tmp_path}/run",
        "MASTER_ADDR=node1",
        "MASTER_PORT=29600",
    ]


def test_srun_starts_the_module_on_every_node_of_the_job(started, tmp_path):
    words = started("slurm", "srun", {"NCCL_MARK": "seen"})
    assert words[:2] == ["-n", "8"]
    assert {"--nodes=2", "--ntasks-per-node=4", "--kill-on-bad-exit=1", "--cpus-per-task=6"} <= set(words)
    export = next(word for word in words if word.startswith("--export=ALL,"))
    assert ",PYTHONSAFEPATH=1" in export and ",PYTHONPATH=/dev/null," in export
    assert (
        f",NCCL_MARK=seen,{VARIABLES}={tmp_path}/run/.variables.json,{LOG_DIR}={tmp_path}/run,MASTER"
        in export
    )
    # The node where SLURM puts rank 0 is not for the hostfile to say.
    assert "MASTER_ADDR" not in export


@pytest.mark.parametrize(("runner", "name"), [("openmpi", "mpirun"), ("slurm", "srun")])
def test_values_are_in_a_file_of_their_owner_and_on_no_command_line(
    started, tmp_path, monkeypatch, runner, name
):
    """What DeepSpeed hands on by itself, too: MLFLOW_TRACKING_PASSWORD would stand in ps of every host."""
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "canary-1")
    words = started(runner, name, {"HF_TOKEN": "canary-2", "NCCL_DEBUG": "INFO"})
    assert "canary" not in " ".join(words) and "NCCL_DEBUG=INFO" in " ".join(words)
    seen = tmp_path / "seen"
    assert seen.stat().st_mode & 0o777 == 0o600
    found = {VARIABLES: str(seen)}
    take_over(found)
    assert found["HF_TOKEN"] == "canary-2" and found["MLFLOW_TRACKING_PASSWORD"] == "canary-1"
    left = [path for path in (tmp_path / "run").iterdir() if "canary" in path.read_text()]
    assert left == [] and (tmp_path / "run" / "environment").stat().st_mode & 0o777 == 0o600


def test_what_a_shell_of_the_hosts_would_run_stays_a_text(tmp_path):
    """DeepSpeed puts double quotes around a value of its file, and nothing around the words of pdsh."""
    value = '$(touch canary) `touch canary` " \\'
    line = hosts().environment_file({"NCCL_NOTE": value}).removesuffix("\n").partition("=")[2]
    shown = subprocess.run(
        ["bash", "-c", f'printf %s "{line}"'], capture_output=True, text=True, cwd=tmp_path
    )
    assert shown.stdout == value and [*tmp_path.iterdir()] == []
    for name in ("a b", "$(touch canary)", "a;b", "a'b", "a*"):
        with pytest.raises(TopologyError, match=r"`run_dir` must be of letters, .*line of shell"):
            hosts().check_words(tmp_path / name)
        hosts("openmpi").check_words(tmp_path / name)


def test_a_signal_is_for_the_ranks_of_this_run_alone():
    """To pkill a dot is any character: runs/v1.0 would mean runs/v110 as well."""
    told = signal_command("train", Path("/runs/v1.0/config.yaml"), "node1")[-1]
    assert r"/runs/v1\.0/config\.yaml" in told


@pytest.mark.parametrize("value", ["mlx5_0,mlx5_1", "^docker0", "two words"])
def test_a_variable_that_would_not_arrive_as_it_is_is_refused(value):
    with pytest.raises(TopologyError, match=r"`NCCL_IB_HCA` must be of letters, .*, but is '.*' instead"):
        hosts("slurm").environment_file({"NCCL_IB_HCA": value})


@pytest.mark.parametrize(
    ("command", "launcher", "told", "code"),
    [
        ("train", 0, "0", 0),
        ("train", 1, "75", 75),
        ("train", 0, None, 1),
        ("train", 3, None, 3),
        ("train", -9, None, 1),
        ("doctor", 0, None, 0),
        ("doctor", 1, "2", 2),
    ],
)
def test_the_exit_code_is_that_of_the_ranks(tmp_path, command, launcher, told, code):
    """DeepSpeed's launcher ends with 0 when what it started was killed, and mpirun with 1 after any failure."""
    if told is not None:
        (tmp_path / EXIT_CODE).write_text(f"{told}\n")
    assert code_of_ranks(command, launcher, tmp_path) == code


def test_what_ranks_leave_behind_is_found_whatever_their_launcher_says(program, tmp_path, monkeypatch):
    program("mpirun", f"echo 75 >{tmp_path}/{EXIT_CODE}; exit 1")
    program("ompi_info", "exit 0")
    (tmp_path / "hosts").write_text("node1 slots=4\nnode2 slots=4\n")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    found = hosts("openmpi", file=tmp_path / "hosts")
    assert start_hosts("train", tmp_path / "config.yaml", found, {}, tmp_path) == 75


@pytest.fixture
def asked(program, tmp_path, monkeypatch):
    """Return a function that runs a command with a script as srun, and sends itself SIGTERM once that runs."""
    program("sinfo", "exit 0")
    (tmp_path / "hosts").write_text("node1 slots=4\nnode2 slots=4\n")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")

    def run(command, script):
        program("srun", script)

        def ask():
            while not (tmp_path / "runs").exists():
                threading.Event().wait(0.1)
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=ask).start()
        before = signal.getsignal(signal.SIGTERM)
        found = hosts("slurm", file=tmp_path / "hosts")
        code = start_hosts(command, tmp_path / "config.yaml", found, {}, tmp_path)
        assert signal.getsignal(signal.SIGTERM) is before
        return code

    return run


def test_a_signal_is_told_again_and_again_to_what_hands_it_on(asked, tmp_path):
    """mpirun and srun hand SIGUSR1 on, to nobody as long as no rank runs."""
    told = tmp_path / "told"
    told.touch()
    script = f"trap 'echo told >>{told}' USR1; touch {tmp_path}/runs"
    assert asked("train", f"{script}; while [[ $(wc -l <{told}) -lt 2 ]]; do sleep 0.1; done; exit 75") == 75


def test_checks_of_the_nodes_end_at_a_signal_and_nothing_is_started_after_them(asked, tmp_path):
    """They do not listen, and a training that a person has just stopped is not to begin."""
    assert asked("doctor", f"trap '' USR1; touch {tmp_path}/runs; sleep 9999; exit 0") == 130


def test_the_signal_meets_ranks_and_not_the_launcher_that_would_kill_them():
    words = signal_command("train", CONFIG, "node1")
    assert words[:4] == ["ssh", "-o", "BatchMode=yes", "node1"]
    pattern = re.search(r"-- '(.*)'$", words[4]).group(1)
    rank = f"/venv/bin/python -u -m trainer train --config {CONFIG}"
    launcher = (
        "/venv/bin/python -u -m deepspeed.launcher.launch --world_info=eyJ9 --node_rank=0 --module --no_local_rank "
        f"--log_level=critical trainer train --config {CONFIG}"
    )
    assert re.search(pattern, rank) and not re.search(pattern, launcher)


@pytest.mark.parametrize(("runner", "needs"), [("pdsh", "pdsh"), ("openmpi", "mpirun"), ("slurm", "srun")])
def test_a_runner_whose_program_is_missing_is_a_sentence(monkeypatch, runner, needs):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(TopologyError, match=f"{runner} needs {needs}, which is missing"):
        hosts(runner).check(None)


def test_hosts_that_ssh_does_not_reach_are_named_with_its_reason(program):
    program("pdsh", "exit 0")
    program(
        "ssh",
        'case "${@: -2:1}" in node1) exit 0;; node2) echo "ssh: Could not resolve hostname node2" >&2;; esac; exit 255',
    )
    hosts(names=["node1"]).check(None)
    why = r"node2 \(ssh: Could not resolve hostname node2\), node3 \(exit code 255\)"
    sentence = rf"does not reach {why}\. Try: ssh node2"
    with pytest.raises(TopologyError, match=sentence):
        hosts(names=["node1", "node2", "node3"]).check(None)


def test_slurms_runner_takes_the_nodes_of_its_own_job(program):
    program("srun", "exit 0")
    hosts("slurm").check(["node2", "node1"])
    with pytest.raises(
        TopologyError, match=r"must name the nodes of this SLURM job, node1, node3, but .* node1, node2"
    ):
        hosts("slurm").check(["node1", "node3"])
    with pytest.raises(
        TopologyError, match=r"outside of SLURM's jobs.* salloc --nodes=2 --ntasks-per-node=4"
    ):
        hosts("slurm").check(None)


def test_a_process_that_does_not_listen_yet_outlives_the_signal():
    script = (
        "import os, signal, sys, threading\n"
        "threading.Timer(0.5, lambda: None)\n"
        "sys.argv = ['palimpsest', 'plan', '--help']\n"
        "import trainer.cli as cli\n"
        "cli.run_command = lambda words: os.kill(os.getpid(), signal.SIGUSR1) or 7\n"
        "cli.main()\n"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 7
