"""Real training on two nodes: ZeRO-3 over the network between them, on CPU with gloo.

One run on one machine is what all others are compared with: the same tokens, the same losses to the last digit.
"""

import os
import subprocess
import sys

import pytest

from tests.helpers.submitted import START_S, Submitted, overrides, trace
from trainer.metrics.jsonl import read

NUM_STEPS = 30
SHORT = 6


def nodes(*more):
    return ["cluster=slurm_cpu", "cluster.num_nodes=2", "cluster.cpus_per_rank=1", *more]


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
def interrupted(slurm, project):
    """Train on two nodes through a time limit, a signal and a requeue; meanwhile once on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        run = Submitted(slurm, project / "two-nodes", *overrides(project, NUM_STEPS), *nodes())
    run.wait(lambda: run.step() >= 4, START_S, "the first steps")
    # Ranks stand still until SLURM looks at the clock, which it does twice a minute.
    run.signal("STOP")
    minutes = int(slurm.ask("squeue", "--noheader", "--format=%M", f"--jobs={run.job}").split(":")[0])
    slurm.ask("scontrol", "update", f"JobId={run.job}", f"TimeLimit={minutes + 2}")
    alone = train_here(project)
    run.wait_for_log("telling the ranks to save", 90)
    run.signal("CONT")
    run.wait(lambda: len(run.lines("ended")) == 1, 60, "the end at the time limit")
    slurm.ask("scontrol", "update", f"JobId={run.job}", "TimeLimit=60")
    assert alone.wait(2 * START_S) == 0, (project / "here.log").read_text()[-5000:]
    reached = run.step()
    run.wait(lambda: run.step() >= reached + 4, START_S, "steps after the time limit")
    run.signal("USR1")
    run.wait(lambda: len(run.lines("ended")) == 2, 60, "the end after a signal")
    reached = run.step()
    run.wait(lambda: run.step() >= reached + 4, START_S, "steps after the signal")
    slurm.ask("scontrol", "requeue", str(run.job))
    run.finish(START_S)
    return run, trace(project / "here")


def test_the_run_ends_after_a_time_limit_a_signal_and_a_requeue(interrupted):
    run, _ = interrupted
    assert run.state == "COMPLETED", run.log[-5000:]
    assert len(run.lines("started")) == 4
    assert [line["code"] for line in run.lines("ended")][:2] == [75, 75]
    assert run.lines("ended")[-1]["code"] == 0
    resumed = [event for event in read(run.run_dir / "ledger.jsonl") if event["event"] == "started"]
    assert [event["attempt"] for event in resumed][:3] == [1, 2, 3]
    assert all(event["world_size"] == 2 for event in resumed)


def test_its_losses_are_those_of_an_uninterrupted_run_on_one_machine(interrupted):
    """A difference at one step only points at the resume there; at all steps at the order of ranks or data."""
    run, alone = interrupted
    assert [step for step, _, _ in alone] == list(range(1, NUM_STEPS + 1))
    assert trace(run.run_dir) == alone


def test_every_attempt_has_its_logs(interrupted):
    run, _ = interrupted
    folders = sorted((run.run_dir / "logs").glob("attempt-*"))
    assert [folder.name for folder in folders] == [f"attempt-{number}" for number in (1, 2, 3, 4)]
    for folder in folders:
        assert (folder / "rank-0.log").stat().st_size and (folder / "rank-1.log").stat().st_size
        assert (folder / "console.log").is_file()


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_other_launchers_give_the_same_losses(slurm, project, interrupted, launcher, monkeypatch):
    monkeypatch.chdir(project)
    short = overrides(project, SHORT)
    run = Submitted(slurm, project / launcher, *short, *nodes(f"cluster.launcher={launcher}"))
    assert run.finish(START_S) == "COMPLETED", run.log[-5000:]
    assert trace(run.run_dir) == interrupted[1][:SHORT]
