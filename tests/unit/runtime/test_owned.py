"""A cache that everybody can write to is not read, and one of somebody else is said to be."""

import os

import pytest

from trainer.errors import DataError
from trainer.runtime.owned import check_cache


@pytest.mark.parametrize("name", [".", "stores", "evaluations"])
def test_a_folder_that_everybody_can_write_to_is_refused(tmp_path, name):
    for folder in ("stores", "evaluations"):
        (tmp_path / folder).mkdir()
    tmp_path.chmod(0o770)
    check_cache(tmp_path, pytest.fail)
    (tmp_path / name).chmod(0o1777)
    with pytest.raises(
        DataError, match=r"`data.cache_dir` must be a folder that its owner and group alone .*chmod o-w"
    ):
        check_cache(tmp_path, pytest.fail)


def test_a_cache_of_somebody_else_is_said(tmp_path):
    told = []
    check_cache(tmp_path, told.append, user=os.geteuid() + 1)
    assert (told == []) == (os.geteuid() == 0)
    check_cache(tmp_path / "none", pytest.fail)


def test_a_run_does_not_read_it(tmp_path, monkeypatch, capsys):
    from trainer.cli import run_command

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    (tmp_path / "rows.txt").write_text("A text.\n" * 50)
    (tmp_path / "cache" / "stores").mkdir(parents=True)
    (tmp_path / "cache" / "stores").chmod(0o777)
    words = ["model=tiny", "data=text", "data.sources.corpus.path=rows.txt", "data.cache_dir=cache"]
    for command in ("prepare", "train"):
        assert run_command([command, *words, "train.max_steps=2"]) == 2
        assert "everybody can write to" in capsys.readouterr().err
