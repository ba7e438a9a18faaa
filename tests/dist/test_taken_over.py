"""A run whose directory another one has taken over meanwhile ends with a sentence, and what the other has stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.dist.session import config_of
from trainer.checkpoint.layout import find_checkpoints
from trainer.metrics.jsonl import read
from trainer.runtime.lease import FOLDER


def train_and_be_replaced(mesh: Any, workspace: str, run_dir: str) -> list[Any]:
    """Train eight steps; before the fourth another machine takes the directory. Return what is said and left."""
    from trainer.errors import CheckpointError
    from trainer.metrics import line_file
    from trainer.run import loop, training
    from trainer.runtime.lock import run_lock

    run, whole = Path(run_dir), loop.train_step

    def replaced(policy: Any, objective: Any, batch: Any, *words: Any) -> Any:
        if batch.step == 3:
            lease = max((run / FOLDER).iterdir())
            taken = run / FOLDER / f"{int(lease.name) + 1:08d}"
            taken.write_text(lease.read_text().replace('"id": "', '"id": "x'))
        return whole(policy, objective, batch, *words)

    words = ["checkpoint.every_steps=2", "checkpoint.keep_last=1", "log.every_steps=4", "zero.stage=0"]
    # The save of step 2 is waited for, so that the directory is taken after it and not while it is written.
    words += ["train.micro_batch_size=4", "evaluate.forgetting=false", "checkpoint.background=false"]
    look_s, line_file.LOOK_S = line_file.LOOK_S, 0.0
    loop.train_step = replaced
    try:
        with run_lock(run):
            said = training.run_training(config_of(workspace, run_dir, *words)).value
    except CheckpointError as error:
        said = str(error)
    finally:
        loop.train_step, line_file.LOOK_S = whole, look_s
    events = [(event["event"], event["step"]) for event in read(run / "ledger.jsonl")]
    newest_line = max(row["step"] for row in read(run / "metrics.jsonl"))
    return [said, [folder.name for folder in find_checkpoints(run)], events[-1], newest_line]


def test_a_run_that_was_replaced_publishes_nothing_and_ends(pool, workspace, tmp_path):
    """Before, it appended to metrics.jsonl and ledger.jsonl of the other run until its end."""
    ((said, checkpoints, newest_event, newest_line),) = pool(1).run(
        train_and_be_replaced, workspace=workspace, run_dir=str(tmp_path / "run")
    )
    assert "`run_dir` must be held by the run that publishes in it" in said
    assert checkpoints == ["step-00000002"]
    assert newest_event == ["saved", 2] and newest_line < 4
