"""Shell completion: bash itself completes, from the script alone, without Python."""

import os
import shutil
import subprocess

import pytest

from trainer.cli import run_command
from trainer.command.completion import OPTIONS, completion
from trainer.command.usage import COMMANDS
from trainer.config.describe import fields
from trainer.config.options import group_options

TAB = """
tab() {
    COMP_LINE="palimpsest $1" COMP_POINT=$((${#1} + 11))
    _palimpsest
    printf '%s\\n' "<$1>" "${COMPREPLY[@]}"
}
"""
LINES = {
    "": list(COMMANDS),
    "tr": ["train"],
    "recipe=l": ["lora"],
    "train mod": ["model=", "model."],
    "train model=llama3_1": [o for o in group_options()["model"] if o.startswith("llama3_1")],
    "train optim.l": ["optim.lr="],
    "train +model.att": ["+model.attention="],
    "train schedule.name=c": ["cosine", "constant"],
    "train optim.decay_embeddings=": ["true", "false"],
    "train data.sources.mine.path=a data.sources.m": ["data.sources.mine."],
    "train data.sources.c": ["data.sources.chat.", "data.sources.corpus."],
    "train data.sources.mine.pa": ["data.sources.mine.path=", "data.sources.mine.packing="],
    "train data.sources.mine.format=": ["text", "completion", "chat", "ids", "preference", "unpaired"],
    "train gate.sets.general.max": ["gate.sets.general.max_rise_nats="],
    "train model.path=./mod": ["./models"],
    "train --config ./mod": ["./models"],
    "train zero.stage=": [],
    "train nothing.like.it": [],
    "submit --dr": ["--dry-run"],
    "export --dr": [],
    "replay ": ["generate"],
    "completion ": ["bash", "zsh", "fish"],
    "schema cluster.": ["cluster.container", "cluster.preflight", "cluster.watch"],
    "explain optim.l": ["optim.lr"],
    "explain optim.lr recipe=q": ["qlora"],
    "train experiment=min": ["mine"],
    "train hydra.searchpath=[file://./site] cluster=our": ["ours"],
}


@pytest.fixture(scope="module")
def replies(tmp_path_factory):
    """Return what bash answers to a Tab at the end of every line, PATH holding no Python."""
    here = tmp_path_factory.mktemp("here")
    for folder in ("models", "palimpsest/experiment", "site/cluster", "bin"):
        (here / folder).mkdir(parents=True)
    (here / "palimpsest/experiment/mine.yaml").touch()
    (here / "site/cluster/ours.yaml").touch()
    for tool in ("sh", "awk", "sed", "tr"):
        (here / "bin" / tool).symlink_to(os.path.realpath(shutil.which(tool)))
    tabs = "\n".join(f"tab '{line}'" for line in LINES)
    script = f"{completion(['bash'])}{TAB}{tabs}\ncomplete -p palimpsest\n"
    done = subprocess.run(
        [shutil.which("bash"), "--norc", "-c", script],
        cwd=here,
        env={"PATH": str(here / "bin")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stderr == ""
    found, at = {}, None
    for line in done.stdout.splitlines():
        if line.startswith("<"):
            at = found.setdefault(line[1:-1], [])
        elif line:
            at.append(line)
    return found


@pytest.mark.parametrize("line", LINES)
def test_bash_completes_a_line(replies, line):
    wanted = [*LINES[line], *(["complete -F _palimpsest palimpsest"] if line == [*LINES][-1] else [])]
    assert sorted(replies[line]) == sorted(wanted)


def test_words_after_a_break_of_bash_begin_where_it_breaks(replies):
    assert replies["train model=llama3_1"][0].startswith("llama"), "bash keeps what stands before `=`"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_script_holds_every_command_key_and_option(capsys, shell):
    assert run_command(["completion", shell]) == 0
    shown = capsys.readouterr().out
    lines = set(shown.splitlines())
    assert {f"k\t{key}" for key in fields()} <= lines
    assert {f"v\t{group}={name}" for group, names in group_options().items() for name in names} <= lines
    assert all(f"o\t{option}\t{command}" in shown for option, command in OPTIONS)
    assert (f"palimpsest completion {shell}" in shown and "complete" in shown) or "compdef" in shown


def test_another_shell_is_refused(refuse):
    assert "must be given bash, zsh or fish, but is given csh instead" in refuse("completion", "csh")
    assert "but is given nothing instead" in refuse("completion")
