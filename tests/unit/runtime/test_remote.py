"""What is started on the hosts of a hostfile, and what tells them to stop."""

import re
from pathlib import Path

import pytest

from trainer.errors import TopologyError
from trainer.runtime.remote import hosts_command, signal_command, start_hosts

CONFIG = Path("/shared/runs/first/config.yaml")


def test_the_launcher_gets_the_frozen_configuration_and_nothing_else():
    command = hosts_command("train", CONFIG, "node1", Path("/shared/hosts"), "pdsh", 29600)
    at = command.index("--module")
    assert command[at:] == ["--module", "trainer", "train", "--config", str(CONFIG)]
    assert command[command.index("--hostfile") + 1] == "/shared/hosts"
    assert command[command.index("--master_addr") + 1] == "node1" and "--no_local_rank" in command


def test_the_signal_meets_ranks_and_not_the_launcher_that_would_kill_them():
    words = signal_command("train", CONFIG, "node1")
    assert words[:4] == ["ssh", "-o", "BatchMode=yes", "node1"]
    pattern = re.search(r"-- '(.*)'$", words[4]).group(1)
    rank = f"/venv/bin/python -u -m trainer train --config {CONFIG}"
    launcher = (
        "/venv/bin/python -u -m deepspeed.launcher.launch --world_info=eyJ9 --node_rank=0 --module --no_local_rank "
        f"--log_level=warning trainer train --config {CONFIG}"
    )
    assert re.search(pattern, rank) and not re.search(pattern, launcher)


def test_a_runner_whose_program_is_missing_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        TopologyError, match=r"`cluster.deepspeed_runner` must .* pdsh needs pdsh, which is missing"
    ):
        start_hosts("train", tmp_path / "config.yaml", ["node1"], tmp_path / "hosts", "pdsh", 29500, {})
    assert [*tmp_path.iterdir()] == []
