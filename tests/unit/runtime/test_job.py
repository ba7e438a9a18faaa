"""What the batch script and its ranks tell each other."""

from trainer.runtime.job import deadline, given_log_dir, is_requeued, leave_exit_code
from trainer.runtime.log import attempt_dir


def test_the_first_rank_that_knows_leaves_the_code(tmp_path):
    environ = {"PALIMPSEST_LOG_DIR": str(tmp_path)}
    leave_exit_code(environ, 0, is_first=False)
    assert not (tmp_path / "exit-code").exists(), "only the first rank knows that all is done"
    leave_exit_code(environ, 2, is_first=False)
    leave_exit_code(environ, 75, is_first=True)
    assert (tmp_path / "exit-code").read_text() == "2\n"


def test_without_a_script_nothing_is_left_and_nothing_is_known(tmp_path):
    leave_exit_code({}, 2, is_first=True)
    assert (
        given_log_dir({}) is None
        and deadline({}) is None
        and deadline({"PALIMPSEST_DEADLINE": "soon"}) is None
    )
    assert deadline({"PALIMPSEST_DEADLINE": "1795341330"}) == 1795341330.0


def test_a_folder_that_is_gone_does_not_hide_how_the_run_ended(tmp_path):
    leave_exit_code({"PALIMPSEST_LOG_DIR": str(tmp_path / "gone")}, 2, is_first=True)


def test_ranks_log_where_the_script_says_if_that_is_an_attempt_of_this_run(tmp_path, monkeypatch):
    monkeypatch.setenv("PALIMPSEST_LOG_DIR", str(tmp_path / "logs" / "attempt-7"))
    assert attempt_dir(tmp_path) == tmp_path / "logs" / "attempt-7"
    assert attempt_dir(tmp_path / "another") == tmp_path / "another" / "logs" / "attempt-1"


def test_a_job_that_is_started_again_says_so():
    assert not is_requeued({}) and not is_requeued(
        {"SLURM_RESTART_COUNT": "0", "TORCHELASTIC_RESTART_COUNT": ""}
    )
    assert is_requeued({"SLURM_RESTART_COUNT": "1"}) and is_requeued({"TORCHELASTIC_RESTART_COUNT": "12"})


def test_a_code_that_a_launcher_made_of_a_signal_is_told_as_shells_do():
    from trainer.runtime.job import as_shells_tell

    assert [as_shells_tell(code) for code in (0, 1, 75, 130, -9, 247, 241, -15)] == [
        0,
        1,
        75,
        130,
        137,
        137,
        143,
        143,
    ]
