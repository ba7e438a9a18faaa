"""Sweeps on this machine with real training of the tiny model; every point is a `palimpsest train`."""

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.helpers.ranks import FOREIGN
from tests.helpers.submitted import last_step, overrides, trace
from tests.helpers.wait import LIMIT_S, wait_until
from trainer.metrics.jsonl import read

pytestmark = pytest.mark.slow
NUM_STEPS = 6


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    texts = [f"{i} squared is {i * i}, and {i + 7} is seven more than {i}." for i in range(400)]
    (folder / "corpus.txt").write_text("\n".join(texts) + "\n")
    return folder


@pytest.fixture
def start(project):
    """Return a function that starts a command of palimpsest with the words of a run."""

    def begin(command, run_dir, *more, num_steps=NUM_STEPS):
        changed = {word.partition("=")[0] for word in more}
        words = [w for w in overrides(project, num_steps) if w.partition("=")[0] not in changed]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        return subprocess.Popen(
            [sys.executable, "-m", "trainer", *command, *words, f"run_dir={run_dir}", *more],
            env=environment | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=project,
        )

    return begin


def points(folder):
    return json.loads((folder / "sweep.json").read_text())["points"]


def test_four_points_one_of_which_crashes_and_each_trains_as_it_would_alone(start, project):
    """A rate of 1e38 overflows in the optimizer. The others give the losses of a run of their own."""
    folder = project / "rates"
    sweep = start(["train", "-m"], folder, "optim.lr=1e-3,1e-2,1e-1,1e38", "optim.clip_norm=0")
    alone = start(["train"], project / "alone", "optim.lr=1e-2", "optim.clip_norm=0")
    said, _ = sweep.communicate(timeout=LIMIT_S)
    assert sweep.returncode == 0, said
    assert alone.wait(LIMIT_S) == 0
    found = points(folder)
    assert [point["state"] for point in found] == ["finished"] * 3 + ["failed (1)"]
    error = "RuntimeError: value cannot be converted to type float without overflow"
    assert found[3]["objective"] is None and found[3]["error"] == error
    assert f"[4/4] 004_lr-1e+38 failed: {error}" in said
    assert trace(folder / found[1]["name"]) == trace(project / "alone")
    alone_at_the_end = [
        row["eval_mean"] for row in read(project / "alone" / "metrics.jsonl") if "eval_mean" in row
    ]
    assert found[1]["objective"] == alone_at_the_end[-1]
    assert found[0]["objective"] > found[1]["objective"]
    assert (folder / "sweep.html").exists()


def test_optuna_trains_and_goes_on(start, project):
    pytest.importorskip("optuna")
    folder = project / "optuna"
    words = ["hydra/sweeper=optuna", "optim.lr=tag(log,interval(1e-4,1e-1))"]
    for num_trials in (2, 3):
        sweep = start(["train", "-m"], folder, *words, f"sweep.trials={num_trials}")
        said, _ = sweep.communicate(timeout=LIMIT_S)
        assert sweep.returncode == 0, said
        assert len(points(folder)) == num_trials
    assert all(point["step"] == NUM_STEPS and point["objective"] for point in points(folder))


def test_a_signal_saves_the_run_of_two_ranks_and_the_same_command_resumes_it(start, project):
    folder = project / "stopped"
    words = ["seed=0,1", "cluster.ranks_per_node=2"]
    sweep = start(["train", "-m"], folder, *words, num_steps=40)
    metrics = folder / "001_seed-0" / "metrics.jsonl"
    wait_until(lambda: last_step(metrics) >= 3, "the third step", process=sweep)
    sweep.send_signal(signal.SIGINT)
    said, _ = sweep.communicate(timeout=LIMIT_S)
    assert sweep.returncode == 75, said
    assert "Points left: 2." in said
    assert points(folder)[0]["state"] == f"stopped, step {points(folder)[0]['step']} saved"
    assert 3 <= points(folder)[0]["step"] < 40
    again = start(["train", "-m"], folder, *words, num_steps=40)
    said, _ = again.communicate(timeout=LIMIT_S)
    assert again.returncode == 0, said
    assert [point["step"] for point in points(folder)] == [40, 40]
    attempts = [
        event["attempt"] for event in read(metrics.parent / "ledger.jsonl") if event["event"] == "started"
    ]
    assert attempts == [1, 2]
