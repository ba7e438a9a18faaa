"""What costs nothing to look at is looked at before anything heavy is loaded."""

import subprocess
import sys

import pytest

from trainer.config.store import compose_config, to_yaml


@pytest.fixture
def run_dir(tmp_path):
    """Return a run directory with a frozen configuration and one checkpoint's folder, of step 3."""
    (tmp_path / "a.txt").write_text("text")
    words = ["model=tiny", "data=text", f"data.sources.corpus.path={tmp_path}/a.txt", "train.max_steps=4"]
    folder = tmp_path / "run"
    (folder / "checkpoints" / "step-00000003").mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(compose_config([*words, f"run_dir={folder}"])))
    return folder


def refused(*words):
    """Return what a command says that can load no torch."""
    code = (
        "import sys\nfor name in ('torch', 'transformers', 'deepspeed'):\n    sys.modules[name] = None\n"
        "from trainer.cli import run_command\nsys.exit(run_command(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    return done.stderr


def test_data_that_is_not_there(tmp_path):
    words = ["model=tiny", "data=text", f"data.sources.corpus.path={tmp_path}/none.txt", "train.max_steps=4"]
    assert "none.txt" in refused("train", *words, f"run_dir={tmp_path}/new")


def test_a_checkpoint_that_is_not_there(run_dir):
    assert "checkpoint" in refused("evaluate", f"run_dir={run_dir}", "evaluate.checkpoint=99")


def test_a_place_of_an_export_that_is_a_file(run_dir):
    said = refused("export", f"run_dir={run_dir}", f"export.output_dir={run_dir}/config.yaml/x")
    assert f"`export.output_dir` must be a folder, but {run_dir}/config.yaml is a file instead." in said
