"""A start that is refused because another run has the directory changes nothing in it."""

import pytest

from trainer.cli import run_command
from trainer.config.snapshot import freeze
from trainer.config.store import compose_config
from trainer.runtime.lock import run_lock

WORDS = ("model=tiny", "data=text", "data.sources.corpus.path=rows.txt", "train.max_steps=2")


@pytest.mark.parametrize("changed", ["log.every_steps=3", "optim.lr=1e-4"])
def test_a_second_start_is_refused_before_it_writes(here, capsys, changed):
    (here / "rows.txt").write_text("A text.\n" * 100)
    run_dir = here / "run"
    freeze(compose_config([*WORDS, f"run_dir={run_dir}"]), run_dir)
    with run_lock(run_dir):

        def state():
            files = [path for path in run_dir.rglob("*") if path.is_file() and path.parent.name != ".lease"]
            return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

        before = state()
        assert run_command(["train", *WORDS, f"run_dir={run_dir}", changed]) == 2
        assert "must be used by one run at a time" in capsys.readouterr().err
        assert state() == before
