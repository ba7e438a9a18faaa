"""A command line run in this process, in an empty folder, outside any launcher."""

import os
from pathlib import Path

import pytest

from tests.helpers.ranks import FOREIGN
from tests.helpers.tiny import save_llama
from trainer.cli import run_command


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Return the empty working directory."""
    for name in list(os.environ):
        if name.startswith(FOREIGN):
            monkeypatch.delenv(name)
    # The command line sets these where they are not; set here, they are put back.
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("DS_LOG_LEVEL", "warning")
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def refuse(here, capsys):
    """Return a function that runs a command line, sees it refused cleanly, and returns the sentence."""

    def run(*arguments):
        capsys.readouterr()
        code = run_command(arguments)
        shown = capsys.readouterr()
        assert code == 2, shown
        assert "Traceback" not in shown.err
        lines = shown.err.splitlines()
        at = next(i for i, line in enumerate(lines) if line.startswith("Error: "))
        assert shown.err.count("Error: ") == 1
        assert [*here.iterdir()] == [], "a refused command wrote into the working directory"
        return "\n".join(lines[at:]).removeprefix("Error: ")

    return run


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """Return the folder of a tiny Llama with a tokenizer and a chat template."""
    folder = tmp_path_factory.mktemp("model")
    save_llama(folder)
    return folder
