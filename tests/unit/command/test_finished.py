"""A finished run that is started again: what it has and how to go on is said before anything is loaded."""

import pytest

from trainer.checkpoint.layout import step_dir
from trainer.command.finished import find_finished
from trainer.config.store import compose_config
from trainer.metrics.jsonl import Ledger


def run_that_ended(run_dir, reason):
    """Leave what a run of 12 steps leaves; reason None: it goes on."""
    step_dir(run_dir, 12).mkdir(parents=True)
    ledger = Ledger(run_dir / "ledger.jsonl")
    ledger.write("started", 0, attempt=1, num_steps=12)
    ledger.write("saved", 12, seconds=1.0)
    if reason:
        ledger.write("stopped", 12, reason=reason)
    ledger.close()


def said(run_dir, *words):
    found = find_finished(compose_config([f"run_dir={run_dir}", *words]))
    assert found is None or not found.is_done, "nothing says that it was concluded"
    return None if found is None else found.sentence


def test_a_finished_run_says_what_it_has_and_how_to_go_on(tmp_path):
    run_dir = tmp_path / "first"
    run_that_ended(run_dir, "finished")
    assert said(run_dir) == (
        f"{run_dir} is finished: 12 of 12 steps are trained, and step-00000012 is saved. It goes on from what is "
        f"sound: the checkpoint of step 12 is not as it was written. To use it: palimpsest export run_dir={run_dir}. "
        f"To train longer, give a run of its own (run_dir={run_dir}-2) more steps, or let it begin from the export "
        f"(model.path={run_dir}/export)."
    )
    assert "begin from the export (model.path=/elsewhere)." in said(run_dir, "export.output_dir=/elsewhere")
    assert said(run_dir, "checkpoint.resume=false") is None, "it trains anew"


def test_an_adapter_is_not_named_as_a_whole_model(tmp_path):
    """RUN_DIR/export may hold the adapter alone, from which no run can begin."""
    run_dir = tmp_path / "first"
    run_that_ended(run_dir, "finished")
    assert said(run_dir, "tune=lora").endswith(f"or let it begin from the adapter (tune.start={run_dir}).")
    assert said(run_dir, "tune=ia3").endswith(
        f"or let it begin from the adapter merged into its base: palimpsest export run_dir={run_dir} export.merge=true "
        f"export.output_dir={run_dir}/merged, then model.path={run_dir}/merged."
    )


@pytest.mark.parametrize("reason", [None, "preempted", "early_stop", "non_finite"])
def test_a_run_with_steps_left_says_nothing(tmp_path, reason):
    run_that_ended(tmp_path / "first", reason)
    assert said(tmp_path / "first") is None and said(tmp_path / "new") is None
