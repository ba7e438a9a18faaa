"""How a command is told which run is meant, and what is said where none is there."""

import pytest

from trainer.command.invocation import frozen_config, parse
from trainer.config.snapshot import freeze
from trainer.config.store import compose_config
from trainer.errors import ConfigError


@pytest.fixture
def run_dir(here):
    """Return the directory of a run, named from the working directory."""
    words = ["model=tiny", "data=text", "data.sources.corpus.path=a.txt", "train.max_steps=4"]
    freeze(compose_config([*words, "run_dir=runs/mein lauf"]), here / "runs" / "mein lauf")
    return "runs/mein lauf"


@pytest.mark.parametrize("command", ["evaluate", "export", "report", "verify"])
def test_a_run_is_given_as_a_path_alone(run_dir, command):
    """verify took one; evaluate said that the path had to be given as KEY=VALUE and quoted."""
    for words in ([run_dir, "log.progress=true"], ["log.progress=true", run_dir]):
        invocation = parse([command, *words])
        assert f"run_dir={run_dir}" in invocation.overrides
        assert str(frozen_config(invocation)) == f"{run_dir}/config.yaml"


def test_a_second_path_is_no_run(run_dir):
    """A shell may have split a value at a space."""
    assert parse(["evaluate", "run_dir=runs/mein", "lauf"]).overrides == ["run_dir=runs/mein", "lauf"]
    assert parse(["export", "adapters=[a,b]", "lauf"]).overrides == ["export.adapters=[a,b]", "lauf"]
    assert parse(["verify", "a", "b"]).overrides == ["run_dir=a", "b"]


@pytest.mark.parametrize("command", ["evaluate", "export", "verify"])
def test_a_run_that_is_not_there_and_a_sweep_are_told_apart(run_dir, here, command):
    """Both were said to have no config.yaml."""

    def refuse(*words):
        with pytest.raises(ConfigError) as caught:
            frozen_config(parse([command, *words]))
        return str(caught.value)

    said = refuse("runs/mein lauv")
    assert "`run_dir` must hold a run, but runs/mein lauv is not there. Did you mean runs/mein lauf?" in said
    (here / "rates" / "002_b").mkdir(parents=True)
    (here / "rates" / "001_a").mkdir()
    for place in ("sweep.json", "001_a/config.yaml", "002_b/config.yaml"):
        (here / "rates" / place).touch()
    said = refuse("run_dir=rates")
    assert "but rates holds a sweep instead. Give one of its 2 runs, such as run_dir=rates/001_a." in said
    assert "runs has no config.yaml instead" in refuse("run_dir=runs")
