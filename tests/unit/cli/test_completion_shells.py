"""zsh and fish complete a line as bash does: each is started, and Tab is pressed."""

import os
import pty
import select
import shutil
import subprocess

import pytest

from tests.helpers.debian import NotInstalled, install
from tests.helpers.wait import LIMIT_S, wait_until
from trainer.command.completion import completion

FISH = {
    "tr": ["train"],
    "recipe=l": ["recipe=lora"],
    "train mod": ["model.", "model="],
    "train +model.att": ["+model.attention="],
    "train schedule.name=c": ["schedule.name=constant", "schedule.name=cosine"],
    "train data.sources.c": ["data.sources.chat.", "data.sources.corpus."],
    "train model.path=./mod": ["model.path=./models/"],
    "train --config ./mod": ["./models/"],
    "train zero.stage=": [],
    "submit --dr": ["--dry-run"],
    "replay ": ["generate"],
    "train experiment=min": ["experiment=mine"],
}
ZSH = {
    "tr": "train ",
    "recipe=l": "recipe=lora ",
    "train mod": "train model",
    "train optim.l": "train optim.lr=",
    "train +model.att": "train +model.attention=",
    "train schedule.name=c": "train schedule.name=co",
    "train data.sources.cor": "train data.sources.corpus.",
    "train model.path=./mod": "train model.path=./models/",
    "train --config ./mod": "train --config ./models/",
    "train zero.stage=": "train zero.stage=",
    "submit --dr": "submit --dry-run ",
    "replay ": "replay generate ",
    "train experiment=min": "train experiment=mine ",
}
"""What stands on the line after a Tab; where several words fit, as much as they share."""
SETTINGS = """
fpath=($ZDOTDIR $fpath)
autoload -Uz compinit && compinit -u -d $ZDOTDIR/dump
tab() { zle complete-word; print -r -- "$BUFFER" >> $ZDOTDIR/seen; BUFFER= }
zle -N tab
bindkey '^I' tab
print -r -- "$_comps[palimpsest]" >> $ZDOTDIR/seen
"""


def shell(name):
    try:
        install([name], [name])
    except NotInstalled as error:
        pytest.skip(str(error))
    return shutil.which(name)


@pytest.fixture
def here(tmp_path):
    """Return a folder with a folder of models and an experiment of a person's own."""
    (tmp_path / "models").mkdir()
    (tmp_path / "palimpsest/experiment").mkdir(parents=True)
    (tmp_path / "palimpsest/experiment/mine.yaml").touch()
    return tmp_path


def test_fish_completes_a_line(here):
    tabs = "\n".join(f"echo '<{line}'; complete -C 'palimpsest {line}'" for line in FISH)
    (here / "tabs.fish").write_text(f"{completion(['fish'])}\n{tabs}\n", encoding="utf-8")
    done = subprocess.run(
        [shell("fish"), "--no-config", "tabs.fish"],
        cwd=here,
        env={"PATH": os.defpath, "HOME": str(here)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0 and done.stderr == ""
    answers = [part.splitlines() for part in done.stdout.split("<")[1:]]
    assert {first: sorted(rest) for first, *rest in answers} == FISH


def test_zsh_completes_a_line(here):
    """The script lies in a folder of $fpath, as its head says, and zsh finds it there by itself."""
    (here / "_palimpsest").write_text(completion(["zsh"]), encoding="utf-8")
    (here / ".zshrc").write_text(SETTINGS, encoding="utf-8")
    program, seen = shell("zsh"), here / "seen"
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(here)
        os.execve(program, [program, "-i"], {"ZDOTDIR": str(here), "TERM": "dumb", "PATH": os.defpath})
    printed = bytearray()

    def line(number):
        def is_there():
            if select.select([terminal], [], [], 0)[0]:
                printed.extend(os.read(terminal, 65536))
            return seen.exists() and len(seen.read_text().splitlines()) > number

        wait_until(is_there, f"line {number} of zsh", printed.decode)
        return seen.read_text().splitlines()[number]

    try:
        assert line(0) == "_palimpsest"
        for number, typed in enumerate(ZSH, start=1):
            os.write(terminal, f"palimpsest {typed}\t".encode())
            assert line(number) == f"palimpsest {ZSH[typed]}", printed.decode()
    finally:
        os.close(terminal)
        os.waitpid(child, 0)
