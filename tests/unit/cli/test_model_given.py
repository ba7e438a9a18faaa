"""The model is something that must be given, and random weights are said aloud."""

import pytest

from trainer.cli import run_command
from trainer.config.check import find_problems
from trainer.config.store import compose_config

DATA = ["data=text", "data.sources.corpus.path=a.jsonl", "train.max_steps=1"]
SENTENCE = "`model` must be given, but is none instead. Set model=NAME (one of benchmark, gemma3_1b_it, "
NODE = ["cluster=slurm_cpu", "cluster.node_local_paths=[/nowhere]", "run_dir=/proc/shared/first"]


@pytest.mark.parametrize("command", ["train", "prepare", "plan", "evaluate", "replay generate"])
def test_a_command_that_needs_a_model_asks_for_it(refuse, command):
    message = refuse(*command.split(), *DATA)
    assert SENTENCE in message and " or model.path=FOLDER." in message


def test_a_submission_asks_for_it(refuse):
    assert SENTENCE in refuse("submit", *DATA, *NODE, "--dry-run")


def test_it_stands_among_the_other_problems(refuse):
    message = refuse("train", *DATA, "optim.lr=0")
    assert (
        message.startswith(
            "The configuration has 3 problems:"  # the file is not there either
        )
        and SENTENCE in message
        and "`optim.lr`" in message
    )


def test_an_experiment_or_a_file_of_ones_own_gives_it(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "ours.yaml").write_text("path: /models/ours\n")
    search = f"hydra.searchpath=[file://{tmp_path}]"
    for words in (["experiment=llama3_1_8b_lora"], [search, "model=ours", *DATA], ["model.path=x", *DATA]):
        config = compose_config(words)
        assert not [found for found in find_problems(config) if found.key == "model"], words


def test_random_weights_are_said_aloud_in_one_line(here, capsys):
    assert run_command(["submit", "model=tiny", *DATA, *NODE, "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert shown.err.count("WARNING: `model.kind` is tiny: the weights are random") == 1
    assert run_command(["plan", "model=tiny", *DATA, "plan.output=plan.svg"]) == 0
    assert capsys.readouterr().out.count("the weights are random") == 1
