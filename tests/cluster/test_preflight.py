"""The checks before the ranks start, on two real nodes: each finds what is wrong with one of them, and names it.

Checks run as they are; in the place of the ranks is a shell script. Nothing of the checks is replaced: a node has
another environment, clock, disk or network than the other.
"""

import contextlib
import json
import re
import shutil
import subprocess
import sys

import pytest

from launch.status import run_status
from tests.cluster.test_job_life import TWO_NODES
from tests.helpers.submitted import Submitted
from tests.helpers.wait import PATIENT, wait_until
from tests.house.tree import ROOT

PYTHON = """\
#!/bin/bash
run_dir=${PALIMPSEST_LOG_DIR%/logs/*}
case "$*" in
    *find_spec*) {before}; exit 0 ;;
    *trainer.launch.inputs*) exit 0 ;;
    *"trainer doctor"*) ;;
    *) touch "$run_dir/rank-$SLURM_PROCID"; exit 0 ;;
esac
if [[ $(hostname) == node2 ]]; then
    {on_node2}
    :
fi
exec {python} "$@"
"""
# For what never comes to an end.
HANG_S = 120
HANGS = (f"cluster.preflight.timeout_s={HANG_S}", f"cluster.preflight.rendezvous_s={HANG_S - 20}")


class Checked:
    """A job of two nodes whose second one is not as it should be."""

    def __init__(self, slurm, folder, *overrides, on_node2="", before=":", launcher="srun"):
        python = folder / "python"
        script = PYTHON.replace("{before}", before).replace("{on_node2}", on_node2)
        python.write_text(script.replace("{python}", sys.executable))
        python.chmod(0o755)
        words = (*TWO_NODES, *PATIENT, f"cluster.launcher={launcher}", f"cluster.python={python}", *overrides)
        self.run = Submitted(slurm, folder / "run", *words)

    def finish(self):
        """Wait for the end; return the exit code of the attempt, which a failed check makes the only one."""
        self.run.finish()
        (ended,) = self.run.lines("ended")
        return ended["code"]

    @property
    def record(self):
        return json.loads((self.run.run_dir / "logs/attempt-1/preflight.json").read_text())

    def problems(self):
        """Return (check, nodes, sentence) of all problems, in their order."""
        return [(one["check"], one["nodes"], one["sentence"]) for one in self.record["problems"]]

    @property
    def has_ranks(self):
        return (self.run.run_dir / "rank-0").exists()


@pytest.fixture
def check(slurm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words, **changes: Checked(slurm, tmp_path, *words, **changes)


def test_two_healthy_nodes_pass_and_the_ranks_start(check):
    job = check()
    assert job.finish() == 0 and job.has_ranks, job.run.log
    assert job.problems() == []
    rows = {row["check"]: row for row in job.record["rows"]}
    assert {name: row["nodes"] for name, row in rows.items()} == {
        "rendezvous": 2,
        "versions": 2,
        "GPUs": 2,
        "matmul": 2,
        "run directory": 2,
        "clocks": 2,
        "all-reduce in nodes": 0,
        "all-reduce between nodes": 2,
    }
    assert "GB/s at least" in rows["all-reduce between nodes"]["result"]
    assert "Preflight: all well" in job.run.log
    assert not list(job.run.run_dir.glob(".preflight-*"))


def test_another_code_version_configuration_clock_and_missing_gpus_are_all_told_at_once(check, tmp_path):
    """One start of Python on each node finds what is independent of each other."""
    other = tmp_path / "other"
    for name in ("trainer", "conf", "launch"):
        target = other / ("trainer" if name == "trainer" else f"trainer/{name}")
        shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "trainer/run/step.py").open("a") as file:
        file.write("# changed\n")
    (other / "deepspeed-0.18.0.dist-info").mkdir()
    (other / "deepspeed-0.18.0.dist-info/METADATA").write_text("Name: deepspeed\nVersion: 0.18.0\n")
    (other / "sitecustomize.py").write_text(
        "import time\nnow = time.time\ntime.time = lambda: now() + 500.0\n"
    )
    job = check(
        on_node2=f"export PYTHONPATH={other}; sed 's/^seed: 0/seed: 1/' \"$run_dir/config.yaml\" >{tmp_path}/c.yaml; "
        f'set -- "${{@/#$run_dir\\/config.yaml/{tmp_path}/c.yaml}}"',
        before='sed -i "s/gpus_per_node: 0/gpus_per_node: 1/; /^# sha256/d" "$run_dir/config.yaml"',
    )
    assert job.finish() == 2 and not job.has_ranks, job.run.log
    sentences = [sentence for _, _, sentence in job.problems()]
    assert [(check, nodes) for check, nodes, _ in job.problems()] == [
        *[("versions", ["node2"])] * 3,
        ("GPUs", ["node1"]),
        ("GPUs", ["node2"]),
        ("clocks", ["node2"]),
    ], sentences
    assert sentences[0].startswith(
        "`deepspeed on node2` must be 0.19.8 as on node1, but is 0.18.0 instead. Give"
    )
    assert "`palimpsest's code on node2` must be" in sentences[1]
    assert "differs in trainer/run/step.py: install the same" in sentences[1]
    assert sentences[2].startswith("`the configuration's digest on node2` must be")
    assert "`GPUs of node1` must be at least the 1 that a node is asked for" in sentences[3]
    assert "is a build without CUDA" in sentences[3] and "cluster.exclude='node1'" in sentences[3]
    assert "`clock of node2` must be within 1 s of node1" in sentences[5]
    # By half a round trip more or less, which a busy machine makes long.
    assert 490 < float(re.search(r"([\d.]+) s ahead", sentences[5]).group(1)) < 510
    # Nothing is tried again, and a person who asks sees the first of them.
    assert run_status(job.run.run_dir).state == "must be mended"
    assert run_status(job.run.run_dir).last_error == f"Error: {sentences[0]} (and 5 more)"
    assert "requeues itself" not in job.run.log


@pytest.mark.slow
def test_a_run_directory_that_a_node_does_not_see_is_told_by_that_node(check):
    job = check(
        on_node2='exec unshare --mount bash -c \'mount -t tmpfs tmpfs ${PALIMPSEST_LOG_DIR%/logs/*}; exec "$0" "$@"\' '
        f'{sys.executable} "$@"'
    )
    assert job.finish() == 2 and not job.has_ranks
    assert "Error: `run_dir on node2` must be the folder that all nodes share, but is" in job.run.log
    assert [check for check, _, _ in job.problems()] == ["rendezvous"]
    assert run_status(job.run.run_dir).last_error.startswith("Error: `run_dir on node2` must be")


OWN_DISK = """exec unshare --mount bash -c '
    run_dir=${PALIMPSEST_LOG_DIR%/logs/*}
    cp "$run_dir/config.yaml" /tmp/preflight-config
    mount -t tmpfs -o size={size} tmpfs "$run_dir"
    mkdir -p "$PALIMPSEST_LOG_DIR"
    mv /tmp/preflight-config "$run_dir/config.yaml"
    {more}
    exec "$0" "$@"' {python} "$@"
"""


def own_disk(size, more=":"):
    """Return what gives a node its own disk in the place of the run directory, with a copy of the configuration."""
    return OWN_DISK.replace("{size}", size).replace("{more}", more).replace("{python}", sys.executable)


@pytest.mark.slow
def test_a_run_directory_of_which_a_node_sees_a_copy_is_found(check):
    job = check("cluster.preflight.visible_s=20", on_node2=own_disk("10m"))
    assert job.finish() == 2 and not job.has_ranks, job.run.log
    ((name, nodes, sentence),) = job.problems()
    assert (name, nodes) == ("run directory", ["node2"])
    assert "`run_dir on node2` must be one folder that all nodes share" in sentence
    assert "without what node1 wrote there instead. Mount the shared disk there" in sentence


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "error"),
    [
        ('head -c 1m /dev/zero >"$run_dir/fill" 2>/dev/null', "No space left on device"),
        ('mount -o remount,ro "$run_dir"', "Read-only file system"),
    ],
)
def test_a_disk_that_a_node_cannot_write_to_is_found(check, more, error):
    job = check("cluster.preflight.visible_s=20", on_node2=own_disk("256k", more))
    assert job.finish() == 2, job.run.log
    ((name, nodes, sentence),) = job.problems()
    assert (name, nodes) == ("run directory", ["node2"])
    assert "`run_dir on node2` must be a folder that it can write to" in sentence and error in sentence


@pytest.mark.slow
def test_a_disk_without_room_for_the_checkpoints_is_found(check):
    job = check(
        "model.tiny.hidden_size=65536", "model.tiny.num_hidden_layers=64", "cluster.write_gb_per_s=1e6"
    )
    assert job.finish() == 2, job.run.log
    ((name, _, sentence),) = job.problems()
    assert name == "run directory"
    assert (
        "must be a disk with room for 3 checkpoints" in sentence and "lower checkpoint.keep_last" in sentence
    )


@pytest.mark.slow
def test_a_node_off_the_network_is_named(check, slurm, tmp_path):
    job = check(*HANGS, before=f"touch {tmp_path}/here; until [[ -e {tmp_path}/go ]]; do sleep 0.1; done")
    job.run.wait((tmp_path / "here").exists, "the first step")
    slurm.unplug("node2")
    try:
        (tmp_path / "go").touch()
        job.run.wait(lambda: job.run.lines("ended") != [], "the end of the attempt")
    finally:
        slurm.plug("node2")
    assert job.finish() == 2 and not job.has_ranks, job.run.log
    sentence = run_status(job.run.run_dir).last_error
    assert sentence.startswith(
        "Error: `preflight` must begin on every node, but did not on node2 (exit code "
    )
    assert "cluster.exclude='node2'" in sentence
    wait_until(lambda: slurm.node_state("node2") == "IDLE", "node2 idle", lambda: slurm.node_state("node2"))


@pytest.mark.slow
def test_a_node_that_never_arrives_is_named_by_the_first(check):
    words = (f"cluster.preflight.timeout_s={HANG_S}", "cluster.preflight.rendezvous_s=10")
    job = check(*words, on_node2="exec sleep 9999")
    assert job.finish() == 2 and not job.has_ranks, job.run.log
    ((name, nodes, sentence),) = job.problems()
    assert (name, nodes) == ("rendezvous", ["node2"])
    assert "must be 1 process(es) that sign in at node1:" in sentence and "within 10 s, but is 0" in sentence
    assert "nothing was heard of it" in sentence and "cluster.exclude='node2'" in sentence


@pytest.mark.slow
def test_a_node_whose_disk_hangs_is_named_when_time_is_up(check, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import os, time\nos.fsync = lambda file: time.sleep(9999)\n")
    job = check(*HANGS, on_node2=f"export PYTHONPATH={tmp_path}")
    assert job.finish() == 2, job.run.log
    ((name, nodes, sentence),) = job.problems()
    assert (name, nodes) == ("run directory", ["node2"])
    assert (
        f"`run directory on node2` must be done within {HANG_S} s" in sentence
        and "disk of the run dir" in sentence
    )


@pytest.mark.slow
def test_a_first_node_that_hangs_ends_itself_and_says_so(check, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, socket, time\nif socket.gethostname() == 'node1':\n    os.fsync = lambda file: time.sleep(9999)\n"
    )
    job = check(f"cluster.environment.PYTHONPATH={tmp_path}", *HANGS)
    assert job.finish() == 2, job.run.log
    # The record goes to the disk that hangs.
    sentence = run_status(job.run.run_dir).last_error
    assert sentence.startswith(f"Error: `run directory on node1` must be done within {HANG_S} s")
    assert "FAILED on node1; not checked" in job.run.log


@pytest.mark.slow
def test_a_slow_network_is_told_against_its_floor(check, slurm):
    limit = (
        "tc",
        "qdisc",
        "add",
        "dev",
        "eth0",
        "root",
        "tbf",
        "rate",
        "80mbit",
        "burst",
        "64k",
        "latency",
        "50ms",
    )
    done = subprocess.run(slurm.in_node("node2", *limit), capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no traffic shaping here: {done.stderr.strip()}")
    try:
        job = check("cluster.preflight.min_inter_node_gb_per_s=0.05")
        assert job.finish() == 2, job.run.log
    finally:
        subprocess.run(slurm.in_node("node2", "tc", "qdisc", "del", "dev", "eth0", "root"))
    ((name, nodes, sentence),) = job.problems()
    assert (name, nodes) == ("all-reduce between nodes", ["node1", "node2"])
    assert "must be at least 0.05 GB/s a node (cluster.preflight.min_inter_node_gb_per_s)" in sentence


@pytest.mark.slow
def test_an_interface_that_is_not_there_is_told_by_the_all_reduce(check):
    job = check(on_node2="export GLOO_SOCKET_IFNAME=ib7")
    assert job.finish() == 2, job.run.log
    assert any("`all-reduce on node2 (rank 1)` must be able to reach" in one[2] for one in job.problems())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "cores"), [("srun", "1"), ("torchrun", "1"), ("torchrun", "null"), ("deepspeed", "1")]
)
def test_nodes_are_checked_by_one_process_a_rank_whatever_starts_the_ranks(check, launcher, cores):
    job = check("cluster.ranks_per_node=2", f"cluster.cpus_per_rank={cores}", launcher=launcher)
    assert job.finish() == 0, job.run.log
    assert "4 of 4 process(es) at node1:" in job.run.log
    rows = {row["check"]: row["nodes"] for row in job.record["rows"]}
    assert rows["all-reduce in nodes"] == rows["all-reduce between nodes"] == 2


@pytest.mark.slow
def test_a_job_without_checks_starts_its_ranks_at_once(check):
    job = check("cluster.preflight.enabled=false", on_node2="exit 1")
    assert job.finish() == 0 and job.has_ranks
    with contextlib.suppress(FileNotFoundError):
        raise AssertionError(job.record)
