"""What a rank says at the end of a run."""

from trainer.checkpoint.layout import step_dir
from trainer.command.rank import END_SENTENCES, newest_in_words


def test_a_run_that_stops_says_which_checkpoint_it_goes_on_from(tmp_path):
    """After a stop in the middle of non-finite steps it is an older one, or none."""
    assert newest_in_words(tmp_path) == f"There is no checkpoint in {tmp_path}."
    for step in (3, 12):
        step_dir(tmp_path, step).mkdir(parents=True)
    (tmp_path / "checkpoints" / "damaged-step-00000020").mkdir()
    newest = newest_in_words(tmp_path)
    assert newest == f"The newest checkpoint is {step_dir(tmp_path, 12)}."
    for reason in ("preempted", "non_finite"):
        assert newest in END_SENTENCES[reason].format(run_dir=tmp_path, newest=newest)
