"""Real training on two nodes: ZeRO-3 over the network between them, on CPU with gloo.

One run on one machine is what all others are compared with: the same tokens, the same losses to the last digit.
Every attempt loads torch on both nodes anew and waits for SLURM's clock, so the default suite has one job, which meets
all that can end an attempt; its tests only read what came of it.
"""

import contextlib
import functools
import os
import subprocess
import sys

import pytest

from tests.helpers.standstill import go_on, ranks_of, stand_still
from tests.helpers.submitted import Submitted, overrides, trace
from tests.helpers.wait import LIMIT_S
from trainer.cli import run_command
from trainer.metrics.jsonl import read

NUM_STEPS = 40
"""Of a tenth of a second, of which each attempt makes a few: ranks stand still while somebody reaches for them."""
SHORT = 6
FEWER = 20
"""Long enough for a node to be lost in the middle."""
LEAD_MIN = 10
"""Minutes from SLURM's warning to the limit: on a busy machine a save takes long."""


def submit(slurm, project, name, *more, num_steps=NUM_STEPS):
    """Submit a run on two nodes, one rank each."""
    nodes = ("cluster=slurm_cpu", "cluster.num_nodes=2", "cluster.cpus_per_rank=1")
    with contextlib.chdir(project):
        return Submitted(slurm, project / name, *overrides(project, num_steps), *nodes, *more)


def train_here(project):
    """Start training on two ranks of this machine."""
    arguments = [*overrides(project, NUM_STEPS), f"run_dir={project}/here", "cluster.ranks_per_node=2"]
    foreign = ("SLURM_", "PALIMPSEST_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    with (project / "here.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "trainer", "train", *arguments],
            env=environment | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=project,
        )


@pytest.fixture(scope="module")
def start_here(project):
    """Return the function that starts training once on this machine, without an interruption."""
    return functools.cache(lambda: train_here(project))


@pytest.fixture(scope="module")
def alone(project, start_here):
    assert start_here().wait(LIMIT_S) == 0, (project / "here.log").read_text()[-5000:]
    return trace(project / "here")


def follow_to_its_time_limit(slurm, run, ranks):
    """Ranks stand still until SLURM looks at the clock, which it does twice a minute; then the job goes on."""
    minutes = int(slurm.ask("squeue", "--noheader", "--format=%M", f"--jobs={run.job}").split(":")[0])
    slurm.ask("scontrol", "update", f"JobId={run.job}", f"TimeLimit={minutes + LEAD_MIN + 1}")
    run.wait_for_log("telling the ranks to save")
    # What the batch script has told them they find when they go on, and it tells them again and again.
    go_on(ranks)
    run.wait(lambda: len(run.lines("ended")) == 1, "the end at the time limit")
    slurm.ask("scontrol", "update", f"JobId={run.job}", "TimeLimit=60")
    return run.finish()


@pytest.fixture(scope="module")
def interrupted(slurm, project, start_here):
    """Train on two nodes through a signal, a requeue by hand and a node that is lost in the middle of a step."""
    run = submit(slurm, project, "two-nodes", "checkpoint.every_steps=2")
    run.signal_at(4)
    reached = run.step()
    run.wait(lambda: run.step() >= reached + 4, "steps after the signal")
    # SLURM ends them where they stand.
    stand_still(run.run_dir)
    slurm.ask("scontrol", "requeue", str(run.job))
    run.wait(lambda: len(run.lines("started")) == 3, "the attempt after the requeue")
    reached = run.step()
    run.wait(lambda: run.step() >= reached + 4, "steps after the requeue")
    slurm.unplug("node2")
    start_here()
    try:
        slurm.lose("node2")
        run.wait(lambda: run.state != "RUNNING", "the job to be taken from its nodes")
    finally:
        slurm.plug("node2")
        slurm.find("node2")
    run.finish()
    return run


def test_the_run_ends_after_a_signal_a_requeue_and_a_lost_node(interrupted):
    run = interrupted
    assert run.state == "COMPLETED", run.log[-5000:]
    assert len(run.lines("started")) == 4
    assert run.lines("ended")[0]["code"] == 75
    assert run.lines("ended")[-1]["code"] == 0
    resumed = [event for event in read(run.run_dir / "ledger.jsonl") if event["event"] == "started"]
    assert [event["attempt"] for event in resumed] == [1, 2, 3, 4]
    assert all(event["world_size"] == 2 for event in resumed)
    # Every attempt went on from a checkpoint, none from the start.
    assert all(event["step"] > 0 for event in resumed[1:])


def test_its_losses_are_those_of_an_uninterrupted_run_on_one_machine(interrupted, alone):
    """A difference at one step only points at the resume there; at all steps at the order of ranks or data."""
    assert [step for step, _, _ in alone] == list(range(1, NUM_STEPS + 1))
    assert trace(interrupted.run_dir) == alone


def test_every_attempt_has_its_logs(interrupted):
    run = interrupted
    folders = sorted((run.run_dir / "logs").glob("attempt-*"))
    assert [folder.name for folder in folders] == [f"attempt-{number}" for number in (1, 2, 3, 4)]
    for folder in folders:
        assert (folder / "rank-0.log").stat().st_size and (folder / "rank-1.log").stat().st_size
        assert (folder / "console.log").is_file()


@pytest.mark.slow
def test_a_job_that_loses_a_node_goes_on_with_the_other_one_by_itself(slurm, project, alone, capsys):
    """It keeps its place: no requeue, the same tokens in every step, losses within the rounding of other sums."""
    fewer = ("cluster.min_nodes=1", "checkpoint.every_steps=2", "cluster.preflight.enabled=false")
    run = submit(slurm, project, "fewer", *fewer, num_steps=FEWER)
    run.wait(lambda: run.step() >= 4, "steps on two nodes")
    slurm.unplug("node2")
    try:
        slurm.lose("node2")
        assert run.finish() == "COMPLETED", run.log[-5000:]
    finally:
        slurm.plug("node2")
        slurm.find("node2")
    assert [line["nodes"] for line in run.lines("started")] == ["node[1-2]", "node1"]
    assert "Restarts=0" in slurm.ask("scontrol", "show", "job", str(run.job)), "it was requeued"
    starts = [event for event in read(run.run_dir / "ledger.jsonl") if event["event"] == "started"]
    assert [event["world_size"] for event in starts] == [2, 1] and starts[1]["step"] >= 2
    found = trace(run.run_dir)
    assert [step for step, _, _ in found] == [*range(1, FEWER + 1)]
    assert max(abs(now[1] - then[1]) for now, then in zip(found, alone, strict=False)) < 1e-5
    assert "Lost: node2. The job goes on with 1 of 2 nodes." in run.log
    capsys.readouterr()
    for command in ("status", "verify"):
        assert run_command([command, str(run.run_dir)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "attempt 2 went on with 1 of 2 nodes: node2 was lost" in said
    assert "those that the configuration draws" in said
    report = (run.run_dir / "report.html").read_text()
    assert f"after step {starts[1]['step']} with 1 rank instead of 2" in report


@pytest.mark.slow
def test_a_run_at_its_time_limit_goes_on_to_the_same_losses(slurm, project, alone):
    run = submit(slurm, project, "limit", f"cluster.signal_lead_s={60 * LEAD_MIN}")
    run.wait(lambda: run.step() >= 1, "the first step")
    assert follow_to_its_time_limit(slurm, run, stand_still(run.run_dir)) == "COMPLETED", run.log[-5000:]
    assert [line["code"] for line in run.lines("ended")] == [75, 0]
    assert trace(run.run_dir) == alone


@pytest.mark.slow
def test_a_rank_that_is_stopped_is_named_and_the_job_requeues_itself(slurm, project, alone):
    watch = ["cluster.watch.enabled=true", "cluster.watch.beat_s=0.5"]
    # After every second step it evaluates and saves, and may be stopped there.
    watch += [f"cluster.watch.{phase}_s=20" for phase in ("step", "evaluate", "save")]
    run = submit(slurm, project, "stopped", "checkpoint.every_steps=2", *watch)
    run.wait(lambda: run.step() >= 6, "steps that are no warm-up")
    stopped = next(rank for rank in ranks_of(run.run_dir) if rank.environ()["SLURM_PROCID"] == "1")
    stopped.suspend()
    run.wait(lambda: len(run.lines("ended")) == 1, "the end of the attempt")
    assert not stopped.is_running()
    assert run.finish() == "COMPLETED", run.log[-5000:]
    assert [line["code"] for line in run.lines("ended")] == [75, 0]
    assert "Rank 1 has given no sign of life for " in run.log
    assert trace(run.run_dir) == alone


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_other_launchers_give_the_same_losses(slurm, project, alone, launcher):
    run = submit(slurm, project, launcher, f"cluster.launcher={launcher}", num_steps=SHORT)
    assert run.finish() == "COMPLETED", run.log[-5000:]
    assert trace(run.run_dir) == alone[:SHORT]


@pytest.mark.slow
def test_one_rank_on_one_node_is_started_stopped_and_resumed(slurm, project):
    """Its step has one task, like a shell that SLURM opens on a node."""
    run = submit(slurm, project, "one-rank", "cluster.num_nodes=1")
    run.signal_at(4)
    assert run.finish() == "COMPLETED", run.log[-5000:]
    assert [line["code"] for line in run.lines("ended")] == [75, 0]
    assert [step for step, _, _ in trace(run.run_dir)] == list(range(1, NUM_STEPS + 1))


@pytest.mark.slow
def test_a_command_in_a_shell_on_a_node_starts_the_ranks_of_that_node(slurm, project):
    """`salloc --ntasks=2` and `srun --pty bash` there: SLURM's variables name two tasks, of which none is a rank."""
    words = [sys.executable, "-m", "trainer", "train", *overrides(project, SHORT), "cluster.ranks_per_node=2"]
    shell = ["salloc", "--quiet", "--nodes=1", "--ntasks=2", "srun", "--ntasks=1", "--cpus-per-task=2"]
    done = subprocess.run(
        [*shell, *words, f"run_dir={project}/shell"],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    starts = [event for event in read(project / "shell" / "ledger.jsonl") if event["event"] == "started"]
    assert [event["world_size"] for event in starts] == [2]
