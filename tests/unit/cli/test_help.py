"""`--help` of a command and `explain`: what a person reads in a terminal of 80 columns."""

import json
import subprocess
import sys

import pytest

from trainer.cli import run_command
from trainer.command.topics import TOPICS
from trainer.command.usage import COMMANDS, SUBCOMMANDS, WHOLE_ALONE
from trainer.config.describe import fields, find_sections
from trainer.config.options import group_options


@pytest.fixture
def say(capsys, monkeypatch):
    """Return a function that runs a command line and returns what it printed, 80 columns wide."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*words):
        assert run_command(words) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return run


def test_every_command_has_a_topic_whose_keys_sections_and_groups_are_there():
    two = {f"{first} {second}" for first, names in SUBCOMMANDS.items() for second in names}
    assert set(TOPICS) == set(COMMANDS) - set(SUBCOMMANDS) | two | set(WHOLE_ALONE)
    for name, topic in TOPICS.items():
        assert [key for key in topic.keys if key not in fields()] == [], name
        assert [key for key in topic.sections if key and not find_sections(key)] == [], name
        assert set(topic.groups) <= set(group_options()), name
        assert topic.usage.startswith(f"palimpsest {name}") and topic.examples


@pytest.mark.parametrize("command", TOPICS)
def test_help_of_a_command_fits_a_terminal(say, command):
    shown = say(*command.split(), "--help")
    lines = shown.splitlines()
    assert lines[0].startswith(f"palimpsest {command}: ") and len(lines) <= 65
    wide = [line for line in lines if len(line) > 80 and line not in TOPICS[command].text.splitlines()]
    assert wide == []
    for key in TOPICS[command].keys if command != "quickstart" else ():
        assert f"  {key}={fields()[key].default_text}" in shown


def test_help_of_quickstart_shows_what_quickstart_takes(say):
    shown = say("quickstart", "--help")
    for word in ("run_dir=runs/quickstart", "train.max_steps=12", "optim.lr=0.0002", "replay.ratio=0.1"):
        assert f"  {word} " in shown, word


def test_an_option_is_explained_with_what_it_inherits(say):
    lines = say("explain", "recipe=qlora").splitlines()
    assert "  tune=qlora" in lines and "    tune=lora" not in lines, "what it says itself counts"
    assert lines.index("  from recipe=lora:") < lines.index("  from recipe=full_finetune:")
    assert "    train.max_epochs=2" in lines and "    data.seq_len=4096" in lines and "    zero=auto" in lines
    assert (
        "    optim.lr=0.0001" in lines
        and "    optim.lr=1e-05" not in lines
        and lines.count("    kind=lora") == 0
    )


def test_the_version_is_said(say):
    from trainer import __version__

    assert say("--version") == f"palimpsest {__version__}\n"


def test_help_of_all_keys_says_all_of_each(say):
    shown = " ".join(say("train", "--help", "--all").split())
    for key in (
        "train.isolation_probe",
        "data.sources.NAME.clean.min_chars",
        "cluster.preflight.visible_s",
        "seed",
    ):
        assert f" {key}={fields()[key].default_text} " in shown
    assert fields()["zero.stage"].meaning in shown


@pytest.mark.parametrize(
    ("words", "head"),
    [
        (["help", "plan"], "palimpsest plan: "),
        (["plan", "model=tiny", "-h"], "palimpsest plan: "),
        (["replay", "--help"], "palimpsest replay generate: "),
        (["help"], "palimpsest: adapt"),
        (["--help"], "palimpsest: adapt"),
        (["nothing", "--help"], "palimpsest: adapt"),
        (["replay"], "palimpsest replay generate: "),
    ],
)
def test_help_is_found_the_ways_people_ask_for_it(say, words, head):
    assert say(*words).startswith(head)


def test_explaining_a_key_says_meaning_type_default_files_and_value(say):
    lines = say("explain", "optim.lr", "recipe=lora").splitlines()
    assert lines[0] == "optim.lr" and lines[1] == "  Peak learning rate."
    assert "  type     number" in lines and "  default  1e-05" in lines
    assert "           recipe=lora: 0.0001" in lines
    assert lines[-1] == "  here     0.0001   with recipe=lora"


def test_explaining_a_key_of_words_says_what_each_means_and_what_it_excludes(say):
    shown = say("explain", "data.sources.mine.long_documents")
    assert "error: Stop, and name the longest." in shown and "one of error, drop, split" in shown
    assert "of train.max_epochs, train.max_tokens: one of them counts" in say("explain", "train.max_steps")


def test_explaining_a_section_a_group_and_an_option(say):
    assert "replay.kl.beta=0.0" in say("explain", "replay.kl")
    assert "  full_finetune " in say("explain", "recipe")
    model = say("explain", "model")
    assert "model.loss_chunk_tokens=4096" in model and "smollm2_135m" in model
    assert "  optim.lr=0.0001" in say("explain", "recipe=lora").splitlines()
    index = say("explain")
    assert "  checkpoint " in index and "  recipe " in index and "run_dir=" in index


def test_an_option_of_a_persons_own_is_named_among_those_that_set_a_key(say, tmp_path):
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim" / "ours.yaml").write_text("# Our rates.\nlr: 7.0e-6\n")
    shown = say("explain", "optim.lr", f"hydra.searchpath=[{tmp_path}]", "optim=ours")
    assert "optim=ours: 7e-06" in shown and "here     7e-06" in shown


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["optim.lrr"], "Did you mean `optim.lr`"),
        (["lr"], "Did you mean `optim.lr`"),
        (["recipe=lorra"], "Did you mean `recipe=lora`"),
        (["qqqqqqq"], "but is none of them instead. `palimpsest explain` lists"),
        (["optim.lr", "recipe=lorra"], "Did you mean `lora`"),
        (["data.sources.NAME.path", "optm.lr=1"], "Unknown key `optm`"),
    ],
)
def test_a_word_that_is_nothing_is_answered_with_the_nearest(refuse, words, sentence):
    assert sentence in refuse("explain", *words)


def test_help_explain_schema_and_completion_load_neither_hydra_nor_torch():
    code = (
        "import json, sys\nfrom trainer.cli import run_command\n"
        "for words in (['train', '--help'], ['explain', 'optim.lr'], ['schema'], ['completion', 'bash']):\n"
        "    assert run_command(words) == 0\n"
        "print()\nprint(json.dumps(sorted({'hydra', 'torch', 'transformers'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
