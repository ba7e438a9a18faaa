"""How an attempt ended is left in its folder, by whoever knows first; what leaves it is no error of its own."""

import pytest

from trainer.config.fence import held
from trainer.errors import CheckpointError, ConfigError, RankLost
from trainer.runtime.ended import FILE, end_noted, note_end, read_end
from trainer.runtime.log import attempt_dir, attempt_dirs, log_dir, setup_logging


def fail(run_dir, error, is_first=True):
    with pytest.raises(type(error)), end_noted(run_dir, is_first):
        raise error


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (ConfigError("`seed` must be 1."), 2, "Error: `seed` must be 1."),
        (RuntimeError("out of memory"), 1, "RuntimeError: out of memory"),
        (RankLost("Rank 1 is gone"), 1, "Error: Rank 1 is gone"),
    ],
)
def test_an_error_before_the_ranks_have_met_is_left_by_the_first(tmp_path, error, code, sentence):
    assert log_dir() is None
    fail(tmp_path, error, is_first=False)
    assert attempt_dirs(tmp_path) == []
    fail(tmp_path, error)
    end = read_end(tmp_path / "logs" / "attempt-1")
    assert end is not None and (end.code, end.sentence) == (code, sentence)


def test_a_rank_leaves_it_where_it_logs_and_the_first_to_know_is_right(tmp_path):
    folder = attempt_dir(tmp_path)
    setup_logging(1, 2, folder)
    try:
        assert log_dir() == folder
        fail(tmp_path, ConfigError("One."), is_first=False)
        fail(tmp_path, ConfigError("Two."))
    finally:
        setup_logging(0, 1, None)
    end = read_end(folder)
    assert end is not None and end.sentence == "Error: One." and attempt_dirs(tmp_path) == [folder]


def test_nothing_is_left_in_a_directory_that_another_run_has_by_now(tmp_path):
    def lost():
        raise CheckpointError("another has it")

    folder = attempt_dir(tmp_path)
    with held(tmp_path, lost):
        note_end(folder, 2, "Error: late.")
    assert not (folder / FILE).exists()


def test_a_run_of_which_a_rank_was_killed_ends_with_the_code_of_the_shell_and_the_sentence_of_who_is_left(
    tmp_path,
):
    folder = attempt_dir(tmp_path)
    note_end(folder, 1, "Error: Rank 1 is gone")
    note_end(folder, 137, "the ranks were killed")
    end = read_end(folder)
    assert end is not None and (end.code, end.sentence) == (137, "Error: Rank 1 is gone")
    note_end(folder, 2, "later")
    assert read_end(folder) == end


@pytest.mark.parametrize("text", ["", "[]", '{"code": "x"}', "{"])
def test_what_cannot_be_read_is_nothing(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    assert read_end(tmp_path) is None and read_end(tmp_path / "none") is None
