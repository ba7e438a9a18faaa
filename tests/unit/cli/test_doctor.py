"""`palimpsest doctor` where little is there, and what it refuses."""

import subprocess
import sys

import pytest

from tests.helpers.wait import LIMIT_S
from trainer.cli import run_command

# What a login node is like: importing torch fails, and nothing says that it is installed.
NO_TORCH = """
import sys
from importlib import metadata
found = metadata.version
def version(name):
    if name in ("torch", "deepspeed"):
        raise metadata.PackageNotFoundError(name)
    return found(name)
metadata.version = version
sys.modules["torch"] = sys.modules["deepspeed"] = None
from trainer.cli import run_command
sys.exit(run_command(["doctor", *sys.argv[1:]]))
"""


def test_a_login_node_without_torch_is_described_and_not_measured(tmp_path):
    words = ("cluster=slurm", "cluster.num_nodes=4")
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    assert "not installed: submit, status and plan work without it" in done.stdout
    assert "not counted without torch" in done.stdout and "a job on several nodes checks all" in done.stdout
    assert "rendezvous" not in done.stdout and list(tmp_path.iterdir()) == []


def test_its_help_says_what_is_checked(capsys):
    assert run_command(["doctor", "--help"]) == 0
    shown = capsys.readouterr().out
    for word in ("rendezvous", "clocks", "cluster.preflight", "Exit code"):
        assert word in shown


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["cluster.preflight.timeout_s=5"],
            "`cluster.preflight.timeout_s` must be in [15, 600], but is 5 instead.",
        ),
        (["cluster.preflight.timeouts=5"], "Did you mean `cluster.preflight.timeout_s`?"),
        (["--fast"], "Unknown option `--fast`."),
        (["--config", "none/config.yaml"], "none/config.yaml cannot be read: No such file"),
    ],
)
def test_bad_input_is_a_sentence(refuse, words, sentence):
    assert sentence in refuse("doctor", *words)


def test_a_rank_that_does_not_see_the_frozen_configuration_names_its_node(refuse, monkeypatch):
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURMD_NODENAME", "node7")
    shown = refuse("doctor", "--config", "/shared/run/config.yaml")
    assert "`run_dir on node7` must be the folder that all nodes share, but is /shared/run without" in shown
