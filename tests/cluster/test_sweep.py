"""Sweeps on a real SLURM: points are jobs on two nodes, whose ranks are a shell script that logs an objective.

test_sweep_of_the_tiny_model is the same with real ranks: bash tests/run.sh tests/cluster/test_sweep.py -m slow
"""

import contextlib
import json
import signal
import subprocess
import sys

import pytest

from launch.attempts import last_job
from launch.slurm import job_states
from launch.status import run_status
from tests.helpers.ctrl_c import listen_to_ctrl_c
from tests.helpers.submitted import ANY_FILE, overrides
from tests.helpers.wait import LIMIT_S, wait_until
from trainer.cli import run_command
from trainer.config.store import load_config
from trainer.metrics.jsonl import read

# The look for the package, the inputs and the checks of nodes succeed; rank 0 logs the learning rate as the objective,
# and what a test adds.
PYTHON = """\
#!/bin/bash
case "$*" in *find_spec* | *"trainer doctor"* | *trainer.launch.inputs*) exit 0 ;; esac
run_dir=${PALIMPSEST_LOG_DIR%/logs/*}
attempt=${PALIMPSEST_LOG_DIR##*-}
value() { awk -v key="$1:" '$1 == key {print $2; exit}' "$run_dir/config.yaml"; }
log() {
    ((SLURM_PROCID)) && return
    printf '{"step":0,"eval_mean":0}\\n{"step":9,"loss":1.5,"eval_mean":%s}\\n' "$1" >"$run_dir/metrics.jsonl"
}
"""
NODES = ("cluster=slurm_cpu", "cluster.cpus_per_rank=1", "cluster.num_nodes=2", "cluster.time_limit_min=60")
RUN = (
    *NODES,
    "model=tiny",
    "data=text",
    f"data.sources.corpus.path={ANY_FILE}",
    "train.max_steps=9",
    "cluster.node_local_paths=[/nowhere]",
    "sweep.poll_s=0.3",
)


@pytest.fixture
def words(slurm, tmp_path, monkeypatch):
    """Return a function that gives the words of a sweep whose ranks run a shell script."""
    monkeypatch.chdir(tmp_path)

    def build(script, *more):
        python = tmp_path / "python"
        python.write_text(PYTHON + script)
        python.chmod(0o755)
        return [*RUN, f"cluster.python={python}", f"run_dir={tmp_path}/sweep", *more]

    return build


def record(folder):
    return json.loads((folder / "sweep.json").read_text())


def num_jobs(slurm):
    return slurm.ask("scontrol", "show", "job", "--oneliner").count("JobId=")


def test_four_points_go_through_requeues_and_one_that_fails_does_not_end_the_others(
    words, slurm, tmp_path, capsys
):
    """The first point requeues itself once, the last one is wrong."""
    script = """
[[ $(value lr) == 2.0e-05 && $(value seed) == 1 ]] && { echo "ValueError: shapes differ" >&2; exit 2; }
[[ $(value lr) == 1.0e-05 && $(value seed) == 0 && $attempt == 1 ]] && exit 75
log "$(value lr)"
"""
    sweep = ["submit", "-m", *words(script), "hydra/launcher=slurm", "optim.lr=1e-5,2e-5", "seed=0,1"]
    assert run_command(sweep) == 0
    shown = capsys.readouterr().out
    folder = tmp_path / "sweep"
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lease",
        ".lock",
        "001_lr-1e-05_seed-0",
        "002_lr-1e-05_seed-1",
        "003_lr-2e-05_seed-0",
        "004_lr-2e-05_seed-1",
        "sweep.html",
        "sweep.json",
    ]
    points = record(folder)["points"]
    assert [point["objective"] for point in points] == [1e-5, 1e-5, 2e-5, None]
    assert [point["state"] for point in points] == ["finished"] * 3 + ["must be mended"]
    assert points[3]["error"] == "ValueError: shapes differ"
    assert record(folder)["best"] == "001_lr-1e-05_seed-0"
    assert run_status(folder / "001_lr-1e-05_seed-0").num_attempts == 2
    frozen = load_config(folder / "003_lr-2e-05_seed-0" / "config.yaml")
    assert (frozen.optim.lr, frozen.log.group) == (2e-5, "sweep")
    assert "004_lr-2e-05_seed-1 failed: ValueError: shapes differ" in shown
    assert f"Best: {folder}/001_lr-1e-05_seed-0, eval_mean 1e-05" in shown

    assert run_command(["status", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[-1] == "eval_mean"
    assert lines[1].split()[:4] == ["001_lr-1e-05_seed-0", "finished", "2", "9/9"]
    assert lines[-1] == "004_lr-2e-05_seed-1: ValueError: shapes differ"

    # Jobs that the queue has forgotten do not hide the others.
    job = last_job(folder / "001_lr-1e-05_seed-0")
    assert job_states([job, 999_999]) == {job: "COMPLETED"} and job_states([999_999]) == {}

    # A person mends the cause and starts the same command again: only the point that failed is submitted.
    before = num_jobs(slurm)
    python = tmp_path / "python"
    python.write_text(PYTHON + 'log "$(value lr)"')
    assert run_command(sweep) == 0
    assert num_jobs(slurm) == before + 1
    assert [point["objective"] for point in record(folder)["points"]] == [1e-5, 1e-5, 2e-5, 2e-5]


@pytest.mark.slow
def test_optuna_chooses_six_points_in_batches_and_goes_on_from_those_it_finds(words, slurm, tmp_path, capsys):
    """A rate above 1e-3 fails. The sweep is started a second time, and tries first what has failed."""
    pytest.importorskip("optuna")
    script = """
awk -v lr="$(value lr)" 'BEGIN {exit lr > 1e-3}' || { echo "RuntimeError: CUDA out of memory" >&2; exit 2; }
log "$(value lr)"
"""
    more = ["hydra/sweeper=optuna", "optim.lr=tag(log,interval(1e-5,1e-2))", "sweep.parallel=3"]
    sweep = ["submit", "-m", *words(script), *more]
    before = num_jobs(slurm)
    assert run_command([*sweep, "sweep.trials=6"]) == 0
    assert num_jobs(slurm) == before + 6
    first = record(tmp_path / "sweep")["points"]
    rates = [float(point["params"]["optim.lr"]) for point in first]
    assert len(set(rates)) == 6 and all(1e-5 <= rate <= 1e-2 for rate in rates)
    assert [point["objective"] is None for point in first] == [rate > 1e-3 for rate in rates]
    good = [point["objective"] for point in first if point["objective"] is not None]
    assert 0 < len(good) < 6
    assert f"eval_mean {min(good):.6g}" in capsys.readouterr().out

    assert run_command([*sweep, "sweep.trials=7"]) == 0
    points = record(tmp_path / "sweep")["points"]
    assert len(points) == 7 and points[6]["params"] not in [point["params"] for point in first]
    assert num_jobs(slurm) == before + 6 + (6 - len(good)) + 1


def test_ctrl_c_leaves_the_jobs_running_and_the_same_command_goes_on(words, slurm, tmp_path, capsys):
    script = """
echo rank >"$run_dir/begun-$SLURM_PROCID"
until [[ -e $run_dir/../go ]]; do sleep 0.2; done
log "$(value lr)"
"""
    sweep = ["train", "-m", *words(script), "hydra/launcher=slurm", "optim.lr=1e-5,2e-5"]
    command = [sys.executable, "-m", "trainer", *sweep]
    waiting = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listen_to_ctrl_c
    )
    folder = tmp_path / "sweep"
    wait_until(lambda: len(list(folder.glob("*/begun-*"))) == 4, "four ranks", waiting.communicate, waiting)
    waiting.send_signal(signal.SIGINT)
    _, said = waiting.communicate(timeout=LIMIT_S)
    assert waiting.returncode == 130
    jobs = [last_job(run) for run in sorted(folder.glob("0*"))]
    assert f"go on by themselves: {jobs[0]} {jobs[1]} (scancel {jobs[0]} {jobs[1]} ends them)" in said
    assert [slurm.state(job) for job in jobs] == ["RUNNING", "RUNNING"]
    (folder / "go").touch()
    assert run_command(sweep) == 0
    shown = capsys.readouterr().out
    assert [last_job(run) for run in sorted(folder.glob("0*"))] == jobs
    assert "Waiting for" in shown or "has finished before" in shown
    assert [point["objective"] for point in record(folder)["points"]] == [1e-5, 2e-5]


def test_a_plain_submission_hands_the_jobs_in_and_a_cancelled_one_is_a_failure(
    words, slurm, tmp_path, capsys
):
    script = '[[ $(value seed) == 1 ]] && sleep 9999; log "$(value lr)"'
    sweep = ["submit", "-m", *words(script), "seed=0,1", "optim.lr=2e-5"]
    assert run_command(sweep) == 0
    shown = capsys.readouterr().out
    folder = tmp_path / "sweep"
    assert f"palimpsest status {folder}" in shown and not (folder / "sweep.html").exists()
    slow = folder / "002_seed-1"
    wait_until(lambda: read(slow / "attempts.jsonl")[-1]["event"] == "started", "the start of the slow one")
    slurm.ask("scancel", str(last_job(slow)))
    wait_until(lambda: run_status(slow).state not in ("running", "completing"), "the end of the slow one")
    wait_until(lambda: run_status(folder / "001_seed-0").state == "finished", "the end of the other")
    assert run_command(["report", f"run_dir={folder}"]) == 0
    first, second = record(folder)["points"]
    assert first["objective"] == 2e-5 and second["objective"] is None
    # Cancelled before it ran, or while its nodes were checked, or its ranks ran; nobody is told to mend anything.
    assert second["state"].startswith(("cancelled", "stopped, ", "failed (")), second
    assert (folder / "sweep.html").exists()


def test_a_point_that_breaks_a_rule_keeps_all_others_from_being_submitted(words, slurm, tmp_path, capsys):
    before = num_jobs(slurm)
    assert run_command(["submit", "-m", *words("exit 0"), "cluster.num_nodes=2,4"]) == 2
    shown = capsys.readouterr().err
    assert "002_num-nodes-4: The configuration has 1 problem" in shown
    assert "`cluster.num_nodes` must be at most the 2 such nodes of partition main, but is 4" in shown
    assert num_jobs(slurm) == before and not (tmp_path / "sweep").exists()


@pytest.mark.slow
def test_sweep_of_the_tiny_model(slurm, project, capsys):
    """Four points on two nodes each, one after the other; a rate that is much too small learns least."""
    folder = project / "real-sweep"
    arguments = [
        *("submit", "-m", "hydra/launcher=slurm", *overrides(project, 8), f"run_dir={folder}"),
        *("cluster=slurm_cpu", "cluster.num_nodes=2", "cluster.cpus_per_rank=4", "cluster.time_limit_min=60"),
        *("cluster.node_local_paths=[/nowhere]", "sweep.poll_s=1", "log=wandb", "log.wandb.mode=offline"),
    ]
    words = [word for word in arguments if not word.startswith("optim.lr=")]
    with contextlib.chdir(project):
        assert run_command([*words, "optim.lr=1e-6,1e-3", "optim.weight_decay=0,0.1"]) == 0
    points = record(folder)["points"]
    assert all(point["state"] == "finished" and point["step"] == 8 for point in points), points
    small, large = points[:2], points[2:]
    assert max(p["objective"] for p in large) < min(p["objective"] for p in small)
    assert record(folder)["best"] in [point["name"] for point in large]
    assert "Waiting for jobs: 4." in capsys.readouterr().out and (folder / "sweep.html").exists()
