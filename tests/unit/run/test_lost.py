"""Checkpoints that are gone are no reason to begin at step 0."""

import pytest

from trainer.checkpoint.lineage import abandon
from trainer.cli import run_command
from trainer.metrics.jsonl import Ledger
from trainer.run.lost import lost_step


@pytest.fixture
def run_dir(tmp_path):
    """Return the directory of a run that saved step 12 and lost it."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    ledger = Ledger(tmp_path / "run" / "ledger.jsonl")
    for event, step in (("started", 0), ("saved", 6), ("saved", 12)):
        ledger.write(event, step)
    ledger.close()
    return tmp_path / "run"


@pytest.mark.parametrize("command", ["train", "submit"])
def test_the_same_command_is_refused_and_the_purposeful_one_keeps_the_records(run_dir, capsys, command):
    """It trained from step 0, with exit code 0."""
    text = run_dir.parent / "a.txt"
    text.write_text("text")
    words = ["model=tiny", "data=text", f"data.sources.corpus.path={text}", "train.max_steps=20"]
    assert run_command([command, *words, f"run_dir={run_dir}"]) == 2
    said = capsys.readouterr().err
    assert f"{run_dir}/checkpoints holds none, and ledger.jsonl knows that step 12 was saved" in said
    assert f"checkpoint.resume=false, which keeps the records in {run_dir}/abandoned-1" in said
    assert not (run_dir / "config.yaml").exists()


def test_what_is_known_of_a_run_that_lost_its_checkpoints_is_set_aside(run_dir):
    assert lost_step(run_dir) == 12
    assert abandon(run_dir, had_some=True) == run_dir / "abandoned-1"
    assert lost_step(run_dir) is None and lost_step(run_dir / "abandoned-1") == 12


@pytest.mark.parametrize("name", ["step-00000012", "damaged-step-00000012"])
def test_a_checkpoint_that_is_there_is_not_lost(run_dir, name):
    (run_dir / "checkpoints" / name).mkdir()
    assert lost_step(run_dir) is None
