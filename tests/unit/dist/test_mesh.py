"""What a rank computes on, and whose failure it tells of."""

import logging

import pytest
import torch

from trainer import cli
from trainer.cli import run_command
from trainer.dist import mesh
from trainer.dist.env import RankEnv
from trainer.dist.mesh import close_mesh, open_mesh
from trainer.dist.watch import Failure
from trainer.errors import Exit, ModelError, RankLost, TopologyError


def test_a_rank_that_sees_fewer_gpus_than_the_ranks_of_its_node_is_told_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(TopologyError, match="is number 2 on its node and sees 1") as error:
        open_mesh(RankEnv(1, 1, 2, "127.0.0.1", 1), 10)
    assert "CUDA_VISIBLE_DEVICES=-1" in str(error.value)


class HeardOfRank1:
    """A watch that has heard of the end of rank 1."""

    is_alone = False

    def __init__(self):
        self.told = None

    def wait_for_failure(self, timeout_s):
        return Failure(1, Exit.died, "Rank 1 is gone without a word")

    def leave(self):
        pass

    def fail(self, code, text):
        self.told = code, text


def test_weights_that_could_not_be_loaded_since_another_rank_died_are_not_called_bad(monkeypatch):
    """Rank 0, stopped while it loaded and let go on: "cannot be loaded: Connection closed by peer", exit code 2."""
    monkeypatch.setattr(mesh, "_watches", [HeardOfRank1()])
    error = ModelError("The weights cannot be loaded. Get the files again.")
    error.__cause__ = RuntimeError("gloo: Connection closed by peer")
    with pytest.raises(RankLost, match="because of rank 1: Rank 1 is gone"):
        close_mesh(ModelError, error)


def test_the_death_of_another_rank_is_a_sentence_on_the_terminal_and_a_traceback_in_the_log(
    monkeypatch, capsys, caplog
):
    """It was 80 lines of a collective's traceback, and the sentence after them."""

    def broken(invocation):
        error = RuntimeError("gloo: Connection closed by peer")
        close_mesh(RuntimeError, error)

    monkeypatch.setattr(mesh, "_watches", [HeardOfRank1()])
    monkeypatch.setattr(cli, "_dispatch", broken)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    with caplog.at_level(logging.DEBUG, "trainer.dist.mesh"):
        assert run_command(["train"]) == Exit.died
    assert capsys.readouterr().err == (
        "Error: This rank ends because of rank 1: Rank 1 is gone without a word\n"
    )
    assert "Connection closed by peer" in caplog.text


@pytest.mark.parametrize("cause", [None, OSError("no such file"), ModelError("another")])
def test_what_a_rank_found_itself_is_told_at_once(monkeypatch, cause):
    watch = HeardOfRank1()
    monkeypatch.setattr(mesh, "_watches", [watch])
    error = ModelError("A sentence.")
    error.__cause__ = cause
    close_mesh(ModelError, error)
    assert watch.told == (Exit.mendable, "A sentence.")
